"""What only a GPU can tell, measured on one: `python -m benchmarks.gpu` (docs/gpu.md says what for)."""
