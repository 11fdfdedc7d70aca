"""The Gaussian-smoothed classifier and the objectives that attack it.

The smoothed classifier of f is g(x) = argmax_c P(f(x + n) = c), n ~ N(0, sigma^2 I). Noise is
drawn once, as an array [num_noise, batch, ...], and given to the attack and to the loss, so that
both see the same draws. It is float32: bfloat16 normals have too few values to certify with.
"""

import functools
import math

import jax
import jax.numpy as jnp

from robust_jax import keys, losses
from robust_jax.keys import standard_normal


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
  example_keys = keys.per_example(key, len(images))
  unit = _unit_noise(example_keys, num_noise=num_noise, shape=images.shape[1:])
  sigma = jnp.asarray(sigma, jnp.float32)
  return unit * sigma.reshape((-1,) + (1,) * (images.ndim - 1))


@functools.partial(jax.jit, static_argnames=('num_noise', 'shape'))
def _unit_noise(example_keys, *, num_noise, shape):
  """Standard normals [num_noise, batch, *shape]; one flat vmap, which compiles fastest."""
  draw_keys = jax.vmap(lambda i: keys.fold_in(example_keys, i))(jnp.arange(num_noise))
  unit = jax.vmap(lambda key: standard_normal(key, shape))(draw_keys.reshape(-1))
  return unit.reshape(num_noise, len(example_keys), *shape)


def noisy_log_probs(logits_fn, images, noise):
  """log F(x + n_i) for every draw: [num_noise, batch, classes], F = softmax(logits_fn(.))."""
  return jax.vmap(lambda n: jax.nn.log_softmax(logits_fn(images + n)))(noise)


def smoothed_log_probs(logits_fn, images, noise):
  """log of the mean probabilities, log (1/m) sum_i F(x + n_i).

  Computed as logsumexp_i log F(x + n_i) - log m, which stays finite, and keeps a gradient, where
  the mean of float32 probabilities underflows.

  Args:
    logits_fn: images -> logits.
    images: [batch, ...] in [0, 1].
    noise: [num_noise, batch, ...].

  Returns:
    [batch, classes].
  """
  return log_mean_probs(noisy_log_probs(logits_fn, images, noise))


def log_mean_probs(log_probs):
  """log (1/m) sum_i exp(log_probs_i): [m, batch, classes] -> [batch, classes]."""
  return jax.nn.logsumexp(log_probs, axis=0) - math.log(len(log_probs))


def vote(logits_fn, images, noise):
  """The class that most of the noisy copies are given, [batch]; ties to the lower class."""
  return majority(jax.vmap(lambda n: logits_fn(images + n))(noise))


def majority(logits):
  """The class that is largest in most of the logits [m, batch, classes]: [batch]; as `vote`."""
  votes = jax.nn.one_hot(losses.predicted(logits), logits.shape[-1])
  return jnp.argmax(jnp.sum(votes, axis=0), axis=-1)


def smoothadv_objective(logits_fn, labels, noise):
  """The SmoothAdv objective J(x') = -log (1/m) sum_i F(x' + n_i)_y.

  Args:
    logits_fn: images -> logits.
    labels: [batch] int.
    noise: [num_noise, batch, ...], held fixed.

  Returns:
    Objective, images -> [batch].

  Reference:
    Salman et al., Provably robust deep learning via adversarially trained smoothed classifiers,
    2019, equation 5.
  """
  return jax.tree_util.Partial(_smoothadv, logits_fn, labels, noise)


def naive_objective(logits_fn, labels, noise):
  """The mean loss of the noisy copies, (1/m) sum_i -log F(x' + n_i)_y.

  Not the loss of the smoothed classifier, and weaker as an attack on it (Salman et al. 2019,
  section 2.2). Arguments as `smoothadv_objective`.
  """
  return jax.tree_util.Partial(_naive, logits_fn, labels, noise)


def gradient_free_objective(logits_fn, labels, noise, *, sigma):
  """The SmoothAdv objective with Stein's estimate in place of its gradient.

  grad E F(x + n)_y = E[F(x + n)_y n] / sigma^2, hence the ascent direction of J at x' is
  -sum_i w_i n_i / sigma^2 with weights w_i = F(x' + n_i)_y / sum_k F(x' + n_k)_y. The value is
  that of `smoothadv_objective`; the network is evaluated but never differentiated.

  As published it has no baseline: where the F(x' + n_i)_y hardly differ, it is minus the mean of
  the draws, whatever the network says. So it needs many draws, the more the more pixels there are;
  few are hardly better than a random direction, and with two an attack may lower its objective.

  Args:
    logits_fn: images -> logits.
    labels: [batch] int.
    noise: [num_noise, batch, ...] drawn with standard deviation `sigma`, held fixed; two draws at
      least, as a single one has weight 1 whatever the network says of it.
    sigma: > 0, in pixel units.

  Returns:
    Objective, images -> [batch].

  Raises:
    ValueError: a single draw.

  Reference:
    Salman et al. 2019, section 2.2; Stein's lemma.
  """
  if len(noise) < 2:
    raise ValueError(f"num_noise is {len(noise)} for 'gradient_free'; 2 or more are allowed")
  return jax.tree_util.Partial(_gradient_free, logits_fn, labels, noise, sigma)


def _label_log_probs(logits_fn, labels, noise, images):
  """log F(x' + n_i)_y: [num_noise, batch]."""
  return jax.vmap(lambda n: -losses.cross_entropy(logits_fn(images + n), labels))(noise)


def _smoothadv(logits_fn, labels, noise, images):
  log_probs = _label_log_probs(logits_fn, labels, noise, images)
  return math.log(len(noise)) - jax.nn.logsumexp(log_probs, axis=0)


def _naive(logits_fn, labels, noise, images):
  return -jnp.mean(_label_log_probs(logits_fn, labels, noise, images), axis=0)


def _gradient_free(logits_fn, labels, noise, sigma, images):
  fixed = jax.lax.stop_gradient(images)
  log_probs = _label_log_probs(logits_fn, labels, noise, fixed)
  value = math.log(len(noise)) - jax.nn.logsumexp(log_probs, axis=0)
  weights = jax.nn.softmax(log_probs, axis=0)
  ascent = -jnp.einsum('mb,mb...->b...', weights, noise) / sigma**2
  # Zero in value, `ascent` in gradient: any optimiser of objectives can follow it.
  offset = (ascent * (images - fixed)).reshape(len(images), -1)
  return value + jnp.sum(offset, axis=-1)


OBJECTIVES = {
    'smoothadv': smoothadv_objective,
    'naive': naive_objective,
    'gradient_free': gradient_free_objective,
}
