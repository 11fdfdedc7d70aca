"""Training methods: pure functions of one batch, at the seam `types.Method`."""

from robust_jax.training.methods.adversarial import adversarial
from robust_jax.training.methods.augmentation import gaussian, standard
from robust_jax.training.methods.jacobian import jacobian_penalty, tangent_penalty
from robust_jax.training.methods.smoothadv import smoothadv
from robust_jax.training.methods.tangent import tangent
from robust_jax.training.methods.vat import vat

METHODS = {
    'standard': standard,
    'gaussian': gaussian,
    'adversarial': adversarial,
    'smoothadv': smoothadv,
    'tangent': tangent,
    'tangent_penalty': tangent_penalty,
    'jacobian_penalty': jacobian_penalty,
    'vat': vat,
}
# Those whose batches are `types.TangentBatch`es.
NEED_TANGENTS = ('tangent', 'tangent_penalty')

__all__ = ['METHODS', 'NEED_TANGENTS', 'adversarial', 'gaussian', 'jacobian_penalty', 'smoothadv',
           'standard', 'tangent', 'tangent_penalty', 'vat']
