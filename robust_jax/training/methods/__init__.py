"""Training methods: pure functions of one batch, at the seam `types.Method`."""

from robust_jax.training.methods.adversarial import adversarial
from robust_jax.training.methods.augmentation import gaussian, standard
from robust_jax.training.methods.noisy_adversarial import noisy_adversarial
from robust_jax.training.methods.smoothadv import smoothadv

METHODS = {
    'standard': standard,
    'gaussian': gaussian,
    'adversarial': adversarial,
    'noisy_adversarial': noisy_adversarial,
    'smoothadv': smoothadv,
}

__all__ = ['METHODS', 'adversarial', 'gaussian', 'noisy_adversarial', 'smoothadv', 'standard']
