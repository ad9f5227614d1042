"""Replace chains of standard operators by single nodes of the operator library `ttac-kernels`.

| in | out | ensures |
|---|---|---|
| lowered graphs of a step, in their order | graphs with nodes of `ttac.kernels` | the same results for other readers |

The graphs stay in the plain layout; the room `blocked` gives the nodes their block.
"""
