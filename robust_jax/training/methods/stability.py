"""Stability training: the prediction under noise should be that of the image."""

import jax
import jax.numpy as jnp

from robust_jax import keys, losses, smoothing
from robust_jax.training.methods import passes
from robust_jax.types import Fraction, MethodOutput, NonNegative, Positive


def stability(key, network, params, batch_stats, batch, progress, *, sigma: Positive,
              weight: NonNegative = 2., label_smoothing: Fraction = 0.):
  """CE(f(x), y) + lambda (-sum_c F(x)_c log F(x + n)_c), n ~ N(0, sigma^2 I), one draw per image.

  The gradient flows through both F(x) and F(x + n). Images and noisy images go through the network
  as one batch: BatchNorm sees them together.

  Args:
    sigma: standard deviation of the noise in pixel units.
    weight: lambda; 0 is training on clean images (up to BatchNorm).
    label_smoothing: of the first term; see `losses.cross_entropy`.

  The other arguments and the result as `types.Method`; the metric 'accuracy' is that on x + n,
  'clean_accuracy' that on x, 'stability' the second term without lambda.

  Reference:
    Li et al., Certified adversarial robustness with additive noise, 2019, section 4.
  """
  del progress
  noise_key, model_key = keys.uses(key, len(batch.images), 2)
  noise = smoothing.sample_noise(noise_key, batch.images, sigma=sigma, num_noise=1)
  (clean_logits, logits), batch_stats = passes.noisy_train_logits(
      model_key, network, params, batch_stats, batch.images,
      jnp.concatenate([jnp.zeros_like(noise), noise]))
  difference = -jnp.sum(jax.nn.softmax(clean_logits) * jax.nn.log_softmax(logits), axis=-1)
  clean_loss = losses.cross_entropy(clean_logits, batch.labels, label_smoothing=label_smoothing)
  metrics = {'accuracy': passes.accuracy(logits, batch.labels),
             'clean_accuracy': passes.accuracy(clean_logits, batch.labels),
             'stability': difference}
  return MethodOutput(clean_loss + weight * difference, batch_stats, metrics)
