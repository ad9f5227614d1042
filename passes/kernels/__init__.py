"""Replace chains of standard operators by single nodes of the operator library `ttac-kernels`.

| in | out | ensures |
|---|---|---|
| lowered graphs of a step, in the order in which they run | the same graphs with nodes of `ttac.kernels` | the ports that others read |

The graphs stay in the plain layout; the room `blocked` gives the nodes their block.
"""
