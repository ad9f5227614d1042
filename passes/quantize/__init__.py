"""Run the frozen layers in 8 bits.

| in | out | ensures |
|---|---|---|
| a model and its sites | the same model with 8-bit modules | every module has a scale per tensor or per channel |
"""
