"""Weights that were trained in PyTorch, for the Flax modules of `robust_jax.models`.

`files` reads checkpoints without PyTorch and without running what is in them; `naming` knows what
PyTorch's code bases call the layers of our networks.
"""

from robust_jax.models.torch_weights.files import read
from robust_jax.models.torch_weights.naming import convert, normalisation, num_classes

__all__ = ['convert', 'normalisation', 'num_classes', 'read']
