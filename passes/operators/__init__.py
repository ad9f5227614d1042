"""The composite operators that ttac adds to ONNX.

| in | out | ensures |
|---|---|---|
| the base rooms | composites with their expansions | each operator states its output types |

| file | idea |
|---|---|
| `bitmask` | masks as one bit per element |
| `channel_sums` | statistics, sums and affine maps of channels |
| `conv_gradients` | the two gradients of a convolution |
| `entropy` | entropy of predictions, and its gradient |
| `gate_masks` | masks that let gradients pass |
| `gelu` | find the exact GELU that exporters write with Erf |
| `pool_gradients` | gradients of pools |
| `random_numbers` | random numbers in a graph |
| `round_to_grid` | rounding to an 8-bit grid |
| `stop_gradient` | a value whose gradient stops |
"""
