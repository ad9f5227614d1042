"""Read a model file.

| in | out | ensures |
|---|---|---|
| an ONNX file | a model in inference form | no training-mode operator is left |
"""
