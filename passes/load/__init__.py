"""Read a model file.

| in | out | ensures |
|---|---|---|
| an ONNX file | a model of opset 18 to 21, one input | inference form; nodes have names, layers |

| file | idea |
|---|---|
| `model_file` | open a file: choose input and output, convert the opset |
| `checked_file` | parse a hostile file and refuse its faults |
| `limits` | refuse recursive or doubling functions, and deep subgraphs |
| `weights_apart` | take the weights out of a graph and put them back |
| `held_inputs` | inputs that keep one value become constants |
| `training_mode` | turn training-mode operators into their inference form |
"""
