"""Decide which values the forward graph keeps for the backward graph, and in which encoding.

| in | out | ensures |
|---|---|---|
| the joint graph, a batch size, a goal in bytes | a plan | codec, bytes and reason of every residual |

| file | idea |
|---|---|
| `needs_gradient` | the nodes that follow from the loss, and the nodes that the backward recomputes |
| `decisions` | records of a plan |
| `codecs/` | encoders and decoders, one file each |
| `moved_state` | copies of state that the forward moves |
| `minimum_cut` | the cheapest set of values to keep |
| `plan` | a cut, then a codec for each value |
| `budget` | plans that fit a peak |
| `keep_ratios` | plans that keep a part of each layer's input |
| `liveness` | bytes alive during a step |
| `schedule` | the order of nodes in a file |
| `published_cache` | the memory that papers count |
"""
