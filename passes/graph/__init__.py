"""The base that every room builds graphs with.

| in | out | ensures |
|---|---|---|
| nothing | graph builder, shapes, state tensors, composites, graph files | no file here knows norms or methods |

| file | idea |
|---|---|
| `keys` | keys of the metadata on nodes and values |
| `shapes` | the dimensions of a value and the size of one sample |
| `composites` | registry of the operators that ttac adds to ONNX |
| `builder` | append typed and named nodes to a graph |
| `expand` | replace ttac operators by standard operators |
| `match` | small patterns: producer, only reader, constant operand |
| `rewire` | put one value in the place of another |
| `reshaping` | shapes as values, with a symbolic batch |
| `windows` | geometry of convolutions and pools |
| `layer_names` | the source module that a node came from |
| `places` | a node or a value in an error, with its layer |
| `state` | tensors that survive a step |
| `graph_files` | write graphs and the weights file that they share |
| `shorten` | shorten the files of 8-bit graphs |
| `execute` | run a graph during a compile |
"""
