"""Library of small graphs that methods share.

| in | out | ensures |
|---|---|---|
| parameters, gradients, settings | updates, augmentation, sample weights | each state tensor has one next value |
"""
