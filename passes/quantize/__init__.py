"""Run the frozen layers in 8 bits.

| in | out | ensures |
|---|---|---|
| a model, its sites, calibration samples or ranges | the model with 8-bit modules | a scale per tensor or channel |

| file | idea |
|---|---|
| `modules` | the steps of this room, and its result |
| `quantized_files` | lift a file that is already 8-bit to float, with its grids |
| `node_grids` | the grid of a QuantizeLinear or DequantizeLinear node, as arrays |
| `fold` | fold norms into the layers before them |
| `ranges` | the range of each activation on calibration data |
| `grids` | decide which operators run in 8 bits, and the grid of each value |
| `int8_weights` | store kernels as int8 with their scales, biases as int32 |
| `insert_grids` | write the pairs of QuantizeLinear and DequantizeLinear |
| `module_list` | list the layers, and the precision that each runs in |
| `float_layers` | ask the engine which layers stay in float32 |
"""
