"""How fast robust_jax is beside PyTorch: `python -m benchmarks --help`."""
