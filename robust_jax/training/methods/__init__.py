"""Training methods: pure functions of one batch, at the seam `types.Method`."""

from typing import NamedTuple

from robust_jax.training.methods.adversarial import adversarial, noisy_adversarial
from robust_jax.training.methods.arow import arow
from robust_jax.training.methods.augmentation import gaussian, standard
from robust_jax.training.methods.catrs import catrs
from robust_jax.training.methods.consistency import consistency
from robust_jax.training.methods.instance_adaptive import iaat, iaat_smoothadv
from robust_jax.training.methods.jacobian import jacobian_penalty, tangent_penalty
from robust_jax.training.methods.macer import macer
from robust_jax.training.methods.mart import mart
from robust_jax.training.methods.n_fgsm import n_fgsm
from robust_jax.training.methods.provable import crown_ibp, ibp, mtl_ibp, sabr, wong_kolter
from robust_jax.training.methods.smoothadv import smoothadv
from robust_jax.training.methods.smoothmix import smoothmix
from robust_jax.training.methods.stability import stability
from robust_jax.training.methods.tangent import tangent
from robust_jax.training.methods.trades import trades
from robust_jax.training.methods.vat import vat

METHODS = {
    'standard': standard,
    'gaussian': gaussian,
    'adversarial': adversarial,
    'noisy_adversarial': noisy_adversarial,
    'n_fgsm': n_fgsm,
    'smoothadv': smoothadv,
    'tangent': tangent,
    'tangent_penalty': tangent_penalty,
    'jacobian_penalty': jacobian_penalty,
    'vat': vat,
    'iaat': iaat,
    'iaat_smoothadv': iaat_smoothadv,
    'trades': trades,
    'mart': mart,
    'arow': arow,
    'stability': stability,
    'consistency': consistency,
    'smoothmix': smoothmix,
    'catrs': catrs,
    'macer': macer,
    'ibp': ibp,
    'crown_ibp': crown_ibp,
    'wong_kolter': wong_kolter,
    'sabr': sabr,
    'mtl_ibp': mtl_ibp,
}


class Needs(NamedTuple):
  """What a method asks for that is no keyword argument of it.

  Attributes:
    attack_loss: what its inner attack has to ascend; None for any loss.
    memory: {name: its first value}, what is remembered of each training example: batch.aux[name]
      has the values of the batch, MethodOutput.memory[name] their new values.
    tangents: whether batch.aux has the 'tangents' of the images (config.data.tangents).
    targets: whether it has their 'targets' (config.data.targets_file).
    norm: in which it trains, if that is fixed and it has no attack; None otherwise.
  """

  attack_loss: str | None = None
  memory: dict[str, float] = {}
  tangents: bool = False
  targets: bool = False
  norm: str | None = None


NEEDS = {
    'trades': Needs(attack_loss='kl'),
    'iaat': Needs(memory={'radius': 0.}),
    'iaat_smoothadv': Needs(memory={'radius': 0.}),
    'catrs': Needs(targets=True),
    'ibp': Needs(norm='linf'),
    'crown_ibp': Needs(norm='linf'),
    'wong_kolter': Needs(norm='linf'),
    'tangent': Needs(tangents=True),
    'tangent_penalty': Needs(tangents=True),
}


def needs(name):
  """The `Needs` of a method of METHODS."""
  return NEEDS.get(name, Needs())


__all__ = ['METHODS', 'NEEDS', 'Needs', 'adversarial', 'arow', 'catrs', 'consistency', 'crown_ibp',
           'gaussian', 'iaat', 'iaat_smoothadv', 'ibp', 'jacobian_penalty', 'macer', 'mart',
           'mtl_ibp', 'n_fgsm', 'needs', 'noisy_adversarial', 'sabr', 'smoothadv', 'smoothmix',
           'stability', 'standard', 'tangent', 'tangent_penalty', 'trades', 'vat',
           'wong_kolter']
