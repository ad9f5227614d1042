"""Rewrite the chosen norms into adaptive norms.

| in | out | ensures |
|---|---|---|
| a model, its sites, a statistics policy | the rewritten model and its state tensors | every site owns its parameters |
"""
