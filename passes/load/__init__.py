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
| `engine_operators` | write fused operators of onnxruntime as standard operators |
| `engine_attention` | the same for Attention |
| `engine_integers` | the same for operators of integers |
| `engine_rules` | all of these rules |
| `training_mode` | turn training-mode operators into their inference form |
"""
