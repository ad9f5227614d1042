"""Execute the written graphs and compare them.

| in | out | ensures |
|---|---|---|
| a bundle folder and the joint graph | differences | an error where a difference exceeds its bound |
"""
