"""The composite operators that ttac adds to ONNX.

| in | out | ensures |
|---|---|---|
| the ground floor | operators with their expansions | each operator states its output types |
"""
