"""Rewrite lowered graphs so that activations stay in the engine's own blocked layout from one convolution to the next.

| in | out | ensures |
|---|---|---|
| lowered graphs, a block size | the blocked graphs, recipes of weights | the same ports, but residuals are blocked |

A blocked tensor [N, C, H, W] has the shape of the plain one; in memory it is [N, C/block, H, W, block].
"""
