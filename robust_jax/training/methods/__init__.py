"""Training methods: pure functions of one batch, at the seam `types.Method`."""

from robust_jax.training.methods.adversarial import adversarial
from robust_jax.training.methods.augmentation import gaussian, standard
from robust_jax.training.methods.consistency import consistency
from robust_jax.training.methods.instance_adaptive import iaat, iaat_smoothadv
from robust_jax.training.methods.jacobian import jacobian_penalty, tangent_penalty
from robust_jax.training.methods.macer import macer
from robust_jax.training.methods.noisy_adversarial import noisy_adversarial
from robust_jax.training.methods.smoothadv import smoothadv
from robust_jax.training.methods.stability import stability
from robust_jax.training.methods.tangent import tangent
from robust_jax.training.methods.trades import trades
from robust_jax.training.methods.vat import vat

METHODS = {
    'standard': standard,
    'gaussian': gaussian,
    'adversarial': adversarial,
    'noisy_adversarial': noisy_adversarial,
    'smoothadv': smoothadv,
    'tangent': tangent,
    'tangent_penalty': tangent_penalty,
    'jacobian_penalty': jacobian_penalty,
    'vat': vat,
    'iaat': iaat,
    'iaat_smoothadv': iaat_smoothadv,
    'trades': trades,
    'stability': stability,
    'consistency': consistency,
    'macer': macer,
}
# Those whose batches are `types.TangentBatch`es.
NEED_TANGENTS = ('tangent', 'tangent_penalty')
# What the attack of a method has to ascend.
ATTACK_LOSS = {'trades': 'kl'}

# What a method remembers of each training example: {method: {name: its first value}}.
MEMORY = {
    'iaat': {'radius': 0.},
    'iaat_smoothadv': {'radius': 0.},
}

__all__ = ['ATTACK_LOSS', 'MEMORY', 'METHODS', 'NEED_TANGENTS', 'adversarial', 'consistency',
           'gaussian', 'iaat', 'iaat_smoothadv', 'jacobian_penalty', 'macer', 'noisy_adversarial',
           'smoothadv', 'stability', 'standard', 'tangent', 'tangent_penalty', 'trades', 'vat']
