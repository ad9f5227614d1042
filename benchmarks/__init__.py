"""Benchmarks: time, memory and errors of ttac, compared with inference of the source and with PyTorch.

| module                             | prints or writes                                                       |
|------------------------------------|------------------------------------------------------------------------|
| `python -m benchmarks`             | `docs/benchmarks.md`: steps, large batches, memory budgets, compiles   |
| `benchmarks.methods_table`         | `docs/methods-table.md`: errors of all methods on the shipped nets     |
| `benchmarks.int8`                  | `docs/int8.md`: 8-bit bundles against 8-bit and float inference        |
| `benchmarks.model_matrix`          | `docs/model-matrix.md`: architectures, exporters and methods           |
| `benchmarks.model_matrix_*`        | the networks of the matrix, their exports, structures and table        |
| `benchmarks.single_sample`         | the time of `leantta` for one sample                                   |
| `benchmarks.agreement`             | errors of ttac and of PyTorch side by side                             |
| `benchmarks.other_machine`         | the same bundles on two machines                                       |
| `benchmarks.compile_time`          | seconds of each room of a compile                                      |
| `benchmarks.profile`               | milliseconds per operator                                              |
| `benchmarks.gradient_errors`       | gradients of each form and of PyTorch against PyTorch in float64       |
| `benchmarks.result_picture`        | the picture of the README                                              |
| `benchmarks.quantized_exports`     | 8-bit files of other quantizers                                        |
| `benchmarks.real_files`            | files with real weights from packages: the methods that compile        |
| `benchmarks.replay`                | digests of twenty bundles, to prove that a refactoring changed nothing |
| `peers`, `pytorch_peers`, `memory` | the methods in PyTorch, and their memory                               |
| `networks`, `exporting`            | the networks of `ttac bench`, and their ONNX files                     |
"""
