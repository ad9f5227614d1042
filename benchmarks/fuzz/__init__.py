"""Structured mutation of hostile inputs: `python -m benchmarks.fuzz`, or `make fuzz MINUTES=10 SEED=0`.

| file | idea |
|---|---|
| `model_mutations` | change an ONNX model as a damaged, foreign or malicious file would be |
| `isolated_case` | run one case in a forked child with limits of time and memory, and classify its end |
| `__main__` | the loop: draw, run, count, and keep the seeds of every bad end |
"""
