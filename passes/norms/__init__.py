"""Recognise the norms of a model, choose which adapt, and insert folded ones.

| in | out | ensures |
|---|---|---|
| the model in normal form, calibration samples | norm sites | each site states its kind, axes, epsilon and parameters |
"""
