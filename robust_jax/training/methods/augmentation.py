"""Training on clean images and on images with Gaussian noise."""

from robust_jax import keys, losses, smoothing
from robust_jax.training.methods import passes
from robust_jax.types import Fraction, MethodOutput, NonNegative


def standard(key, network, params, batch_stats, batch, progress, *,
             label_smoothing: Fraction = 0.):
  """Cross-entropy of the images: L(x, y).

  Args:
    label_smoothing: see `losses.cross_entropy`.

  The other arguments and the result as `types.Method`.
  """
  del progress
  logits, batch_stats = network.train_logits(params, batch_stats, batch.images, key)
  loss = losses.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
  return MethodOutput(loss, batch_stats, {'accuracy': passes.accuracy(logits, batch.labels)})


def gaussian(key, network, params, batch_stats, batch, progress, *, sigma: NonNegative,
             label_smoothing: Fraction = 0.):
  """Cross-entropy of noisy images: L(x + n, y), n ~ N(0, sigma^2 I), one draw per image.

  Args:
    sigma: standard deviation of the noise in pixel units.
    label_smoothing: see `losses.cross_entropy`.

  The other arguments and the result as `types.Method`.

  Reference:
    Cohen et al., Certified adversarial robustness via randomized smoothing, 2019.
  """
  noise_key, model_key = keys.uses(key, len(batch.images), 2)
  noise = smoothing.sample_noise(noise_key, batch.images, sigma=sigma, num_noise=1)[0]
  return standard(model_key, network, params, batch_stats,
                  batch._replace(images=batch.images + noise), progress,
                  label_smoothing=label_smoothing)
