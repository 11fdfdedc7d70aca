"""MACER: makes the certified radius of the smoothed classifier itself larger, without attack."""

import math

import jax
import jax.numpy as jnp

from robust_jax import keys, losses, smoothing
from robust_jax.training.methods import passes
from robust_jax.types import Count, Index, MethodOutput, NonNegative, Positive

# Added to a probability before its logarithm is taken, as in the authors' code.
_LEAST = 1e-10


def macer(key, network, params, batch_stats, batch, progress, *, sigma: Positive,
          num_noise: Count = 16, weight: NonNegative = 12., beta: Positive = 16.,
          gamma: Positive = 8., start_epoch: Index = 0):
  """-log(Fm_y + 1e-10) + lambda (sigma / 2) max(0, gamma - xi).

  Fm = mean_i softmax(z_i) over the logits z_i of x + n_i, n_1..n_m ~ N(0, sigma^2 I), and
  xi = Phi^-1(Gm_y) - Phi^-1(max_{j != y} Gm_j) with Gm = mean_i softmax(beta z_i): sigma xi / 2 is
  the radius that soft votes would certify. The second term is there only for images with
  argmax Gm = y and |xi| <= gamma, which leaves out all whose xi is not finite; the others count in
  the mean over the batch all the same.

  Args:
    sigma: standard deviation of the noise in pixel units.
    num_noise: m.
    weight: lambda; 0 leaves the cross-entropy of the mean prediction.
    beta: inverse temperature.
    gamma: the largest xi that is still to grow.
    start_epoch: the first epoch, counted from 0, that has the second term.

  The other arguments and the result as `types.Method`; the metric 'accuracy' is that of Gm,
  'soft_radius' sigma xi / 2 where the second term is there and 0 elsewhere.

  Reference:
    Zhai et al., MACER: attack-free and scalable robust training via maximizing certified radius,
    2020, equation 11 and algorithm 1.
  """
  noise_key, model_key = keys.uses(key, len(batch.images), 2)
  noise = smoothing.sample_noise(noise_key, batch.images, sigma=sigma, num_noise=num_noise)
  logits, batch_stats = passes.noisy_train_logits(model_key, network, params, batch_stats,
                                                  batch.images, noise)
  log_mean = smoothing.log_mean_probs(jax.nn.log_softmax(logits))
  label_log_prob = jnp.take_along_axis(log_mean, batch.labels[:, None], axis=-1)[:, 0]
  loss = -jnp.logaddexp(label_log_prob, math.log(_LEAST))

  log_votes = smoothing.log_mean_probs(jax.nn.log_softmax(beta * logits))
  is_label = batch.labels[:, None] == jnp.arange(logits.shape[-1])
  others = jnp.where(is_label, -jnp.inf, log_votes)
  # 1 - Gm_y as a sum, because float32 has no value between 1 - 6e-8 and 1.
  tail, runner_up = jax.nn.logsumexp(others, axis=-1), jnp.max(others, axis=-1)
  correct = losses.predicted(log_votes) == batch.labels
  xi = jax.lax.stop_gradient(_gap(tail, runner_up))
  counts = correct & (jnp.abs(xi) <= gamma)
  # Chosen before the quantile function as well as after: its slope at 0 is infinite, times 0 NaN.
  half = math.log(0.5)
  gap = _gap(jnp.where(counts, tail, half), jnp.where(counts, runner_up, half))
  gap = jnp.where(counts, gap, gamma)
  weight = jnp.where(progress.epoch < start_epoch, 0., weight)
  loss = loss + weight * sigma / 2 * (gamma - gap)
  metrics = {'accuracy': correct.astype(jnp.float32),
             'soft_radius': jnp.where(counts, sigma / 2 * gap, 0.)}
  return MethodOutput(loss, batch_stats, metrics)


def _gap(log_tail, log_runner_up):
  """Phi^-1(p_y) - Phi^-1(p_j) from log(1 - p_y) and log(p_j)."""
  return -(jax.scipy.special.ndtri(jnp.exp(log_tail))
           + jax.scipy.special.ndtri(jnp.exp(log_runner_up)))
