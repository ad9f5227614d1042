"""Cut the joint graph into a forward and a backward graph.

| in | out | ensures |
|---|---|---|
| the joint graph and the plan | two graphs | each residual has one name, dtype and shape on both sides |

| file | idea |
|---|---|
| `partition` | the cut |
| `encode` | encoders in the forward, decoders in the backward |
"""
