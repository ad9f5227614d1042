"""Decide what the forward graph keeps for the backward graph.

| in | out | ensures |
|---|---|---|
| the joint graph, a batch size, a budget | a plan | bytes of every residual, and the reason it is kept |
"""
