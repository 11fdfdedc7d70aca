"""The class that an attack aims at, whether it got there, and which of two results did better."""

import jax
import jax.numpy as jnp

from robust_jax import smoothing
from robust_jax.attacks.threat_models import column


def choose_targets(key, victim, images, labels, *, target):
  """A class other than the label for each image.

  Args:
    key: [batch] keys, used by 'random' alone.
    victim: `smoothing.Victim`.
    images: [batch, ...].
    labels: [batch] int.
    target: 'random', uniformly; 'least_likely' or 'runner_up', the one with the least or the
      largest (mean) probability.

  Returns:
    [batch] int.

  Raises:
    ValueError: another target.
  """
  scores = smoothing.mean_logits(victim.logits(images))
  num_classes = scores.shape[-1]
  if target == 'random':
    shift = jax.vmap(lambda k: jax.random.randint(k, (), 1, num_classes, jnp.int32))(key)
    return (labels + shift) % num_classes
  if target == 'least_likely':
    is_label = labels[:, None] == jnp.arange(num_classes)
    return jnp.argmin(jnp.where(is_label, jnp.inf, scores), axis=-1)
  if target == 'runner_up':
    return _most_probable(scores, labels, 1)[0]
  raise ValueError(f"target must be 'random', 'least_likely' or 'runner_up', got {target!r}")


def most_probable(victim, images, labels, num):
  """The `num` most probable classes other than the label, or all of them: [num, batch] int.

  Args:
    victim, images, labels: as in `choose_targets`.
    num: at least 1.
  """
  return _most_probable(smoothing.mean_logits(victim.logits(images)), labels, num)


def _most_probable(scores, labels, num):
  num_classes = scores.shape[-1]
  is_label = labels[:, None] == jnp.arange(num_classes)
  return jax.lax.top_k(jnp.where(is_label, -jnp.inf, scores), min(num, num_classes - 1))[1].T


def reached(predicted, labels, targets=None):
  """[batch] bool: classified as the target or, without targets, other than the label."""
  return predicted != labels if targets is None else predicted == targets


def better(new, best):
  """Of two `AttackResult`s, per example, the successful one; else that of the larger objective.

  A number is larger than NaN. `undefined` is that of either.
  """
  wins = (new.success & ~best.success) | (
      (new.success == best.success) & ((new.objective > best.objective)
                                       | jnp.isnan(best.objective)))
  kept = jax.tree.map(lambda n, b: jnp.where(column(wins, n), n, b), new, best)
  return kept._replace(undefined=new.undefined | best.undefined)
