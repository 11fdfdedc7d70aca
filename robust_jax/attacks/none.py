"""The attack that changes nothing."""

from robust_jax import inputs, smoothing
from robust_jax.attacks import objectives
from robust_jax.types import AttackResult


def no_attack(key, logits_fn, images, labels, *, epsilon=0., noise=None):
  """The images themselves: a method with this attack trains on clean (or noisy) images."""
  del key
  victim = smoothing.victim(logits_fn, noise)
  images, labels, _, _ = inputs.attacked(victim, images, labels, epsilon=epsilon)
  logits = victim.logits(images)
  return AttackResult(images, smoothing.majority(logits) != labels,
                      objectives.cross_entropy(logits, labels))
