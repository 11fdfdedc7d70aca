"""Faster layers and process settings for CPUs; each has a plain version beside its one caller.

`robust_jax.backend` alone imports this package. benchmarks/README.md says what each part gains.
"""

from robust_jax.cpu.layers import BatchNorm, Conv
from robust_jax.cpu.onednn import available as has_convolutions
from robust_jax.cpu.pooling import max_pool
from robust_jax.cpu.process import tune

__all__ = ['BatchNorm', 'Conv', 'has_convolutions', 'max_pool', 'tune']
