"""Time and memory of ttac against plain inference and PyTorch: `python -m benchmarks`, or `make bench`."""
