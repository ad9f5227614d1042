"""Bring the model into normal form.

| in | out | ensures |
|---|---|---|
| the loaded model | the same function in fewer operators | known shapes, batch N, a norm's parameters on one node |

| file | idea |
|---|---|
| `normal_form` | the steps of this room |
| `same_results` | the check that nothing changed |
| `batch_walk` | infer every shape as [N, ints...] with two imaginary batches |
| `traced_batch` | free the batch of a file that was traced with a number |
| `branches` | write an If as nodes of the graph |
| `single_sample` | infer the shapes of a file that works for one sample only |
| `simplify` | constant folding by onnxsim, in a child process |
| `simplify_child` | the child process |
| `norm_patterns` | recognise a norm that a file spells in single operators |
| `fuse_norms` | write each norm as one operator |
| `group_norms` | the same for norms over groups of channels |
| `folded_affines` | the scale and shift that a folded batch norm leaves |
| `affine_nodes` | the scale and bias of a norm as one node |
"""
