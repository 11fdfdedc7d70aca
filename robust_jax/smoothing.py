"""The Gaussian-smoothed classifier: its noise, its noisy copies, and what an attack sees of it.

The smoothed classifier of f is g(x) = argmax_c P(f(x + n) = c), n ~ N(0, sigma^2 I). Noise is
drawn once, as an array [num_noise, batch, ...], and given to the attack and to the loss, so that
both see the same draws. It is float32: bfloat16 normals have too few values to certify with.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_jax import inputs, keys, losses
from robust_jax.types import Array, LogitsFn


def sample_noise(key, images, *, sigma, num_noise):
  """Draws n_i ~ N(0, sigma^2 I), one set per example.

  Draw i of an example comes from fold_in(the example's key, i): more draws extend fewer.

  Args:
    key: one key or [batch] keys (see `keys`).
    images: [batch, ...]; only its shape is used.
    sigma: standard deviation in pixel units, scalar or [batch]; 0 gives zeros.
    num_noise: number of draws per image.

  Returns:
    [num_noise, batch, ...] float32.
  """
  if num_noise < 1:
    raise ValueError(f'num_noise must be at least 1, got {num_noise}')
  sigma = inputs.radius(sigma, len(images), name='sigma')
  example_keys = keys.per_example(key, len(images))
  unit = _unit_noise(example_keys, num_noise=num_noise, shape=images.shape[1:])
  return unit * sigma.reshape((-1,) + (1,) * (images.ndim - 1))


@functools.partial(jax.jit, static_argnames=('num_noise', 'shape'))
def _unit_noise(example_keys, *, num_noise, shape):
  """Standard normals [num_noise, batch, *shape]; one flat vmap, which compiles fastest."""
  draw_keys = jax.vmap(lambda i: keys.fold_in(example_keys, i))(jnp.arange(num_noise))
  unit = jax.vmap(lambda key: keys.standard_normal(key, shape))(draw_keys.reshape(-1))
  return unit.reshape(num_noise, len(example_keys), *shape)


class Victim(NamedTuple):
  """A classifier as attacks see it: m copies of the network, or the network itself, m = 1.

  A pytree. Whether there is noise is asked here and nowhere else.

  Attributes:
    logits_fn: images -> logits [batch, classes], a pytree.
    noise: [m, batch, ...], held fixed, for copies logits_fn(x + n_i); None: x itself.
  """

  logits_fn: LogitsFn
  noise: Array | None

  @property
  def num_copies(self):
    """m."""
    return 1 if self.noise is None else len(self.noise)

  def logits(self, images):
    """The logits of every copy: [m, batch, classes]."""
    if self.noise is None:
      return inputs.logits(self.logits_fn(images), len(images))[None]
    noise = inputs.noise(self.noise, images)
    return jax.vmap(lambda n: inputs.logits(self.logits_fn(images + n), len(images)))(noise)

  def num_classes(self, images):
    """The number of classes, from the shape of the logits alone."""
    return inputs.num_classes(self.logits_fn, images)

  def predict(self, images):
    """The class that most copies are given, [batch]; see `majority`."""
    return majority(self.logits(images))

  def objective(self, loss, *args):
    """An Objective, images -> loss(logits [m, batch, classes], *args), as a pytree.

    Args:
      loss: one of `attacks.objectives`, or another function at the top level of a module.
      *args: arrays.
    """
    return jax.tree_util.Partial(_objective, jax.tree_util.Partial(loss), self, args)

  def rows(self, rows):
    """The same for a slice of the images."""
    return self if self.noise is None else self._replace(noise=self.noise[:, rows])


def victim(logits_fn, noise=None):
  """The classifier or, given noise, the smoothed classifier as a `Victim`.

  Args:
    logits_fn: images -> logits, normalisation included.
    noise: None, which is the same as a single draw of zeros, or [num_noise, batch, ...] from
      `sample_noise`.
  """
  return Victim(as_pytree(logits_fn), noise)


def as_pytree(logits_fn):
  """logits_fn as an argument of compiled functions: a `jax.tree_util.Partial` as it is.

  A plain function may read what changes between calls, as parameters that go on being trained, but
  a compiled function goes on with what it read at first. So this is a new function each time,
  which is compiled anew.
  """
  if isinstance(logits_fn, jax.tree_util.Partial):
    return logits_fn
  return jax.tree_util.Partial(lambda *args: logits_fn(*args))


def _objective(loss, victim, args, images):
  return loss(victim.logits(images), *args)


def mean_logits(logits):
  """Logits of the copies' mean probabilities: of one copy its own, of several `log_mean_probs`.

  Args:
    logits: [m, batch, classes].

  Returns:
    [batch, classes].
  """
  return logits[0] if len(logits) == 1 else log_mean_probs(jax.nn.log_softmax(logits))


def log_mean_probs(log_probs):
  """log (1/m) sum_i exp(log_probs_i): [m, batch, classes] -> [batch, classes].

  By logsumexp, which stays finite, and keeps a gradient, where the mean of float32 probabilities
  underflows.
  """
  return jax.nn.logsumexp(log_probs, axis=0) - math.log(len(log_probs))


def majority(logits):
  """The class that is largest in most of the copies' logits; ties go to the lower class.

  Copies with a NaN vote for no class, -1, which wins where no class has as many votes.

  Args:
    logits: [m, batch, classes].

  Returns:
    [batch] int.
  """
  no_class = logits.shape[-1]
  # Modulo classes + 1, the -1 of NaN is the last column.
  votes = jax.nn.one_hot(losses.predicted(logits) % (no_class + 1), no_class + 1)
  winner = jnp.argmax(jnp.sum(votes, axis=0), axis=-1)
  return jnp.where(winner == no_class, -1, winner)
