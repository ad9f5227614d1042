"""Bring the model into normal form.

| in | out | ensures |
|---|---|---|
| the loaded model | the same function in fewer spellings | known shapes, a batch axis named N, norms as one operator |
"""
