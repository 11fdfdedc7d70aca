"""Consistency regularisation: the predictions of noisy copies should agree and be sure."""

from typing import Annotated

import jax
import jax.numpy as jnp

from robust_jax import keys, smoothing
from robust_jax.training import schedules
from robust_jax.training.methods import passes
from robust_jax.types import Attack, Fraction, Index, Interval, MethodOutput, NonNegative, Positive


def consistency(key, network, params, batch_stats, batch, progress, *, attack: Attack,
                epsilon: NonNegative, sigma: Positive,
                num_noise: Annotated[int, Interval(2)] = 2, weight: NonNegative = 10.,
                eta: NonNegative = 0.5, epsilon_warmup_epochs: Index = 0,
                label_smoothing: Fraction = 0.):
  """Mean CE(f(x + n_i), y) + lambda mean_i KL(Fm || F(x + n_i)) + eta H(Fm).

  n_1..n_m ~ N(0, sigma^2 I), drawn once; Fm = mean_i F(x + n_i); H is the entropy. The gradient
  flows through Fm. With an attack, x is x' = attack(x) in all of it, where the attack ascends the
  objective smoothed by the same draws (Consistency + SmoothAdv).

  Args:
    attack: 'none' for Consistency itself, or that of SmoothAdv; it is given the noise.
    epsilon: its radius in pixel units.
    sigma: standard deviation of the noise in pixel units.
    num_noise: m.
    weight: lambda; together with eta = 0, 0 is Gaussian augmentation of m draws, or SmoothAdv.
    eta: the weight of the entropy.
    epsilon_warmup_epochs: epochs over which the radius grows to epsilon.
    label_smoothing: of the cross-entropy; see `losses.cross_entropy`.

  The other arguments and the result as `types.Method`; the metric 'accuracy' is the share of
  noisy copies classified correctly, 'divergence' and 'entropy' are the last two terms without
  their weights.

  Reference:
    Jeong & Shin, Consistency regularization for certified robustness of smoothed classifiers,
    2020, equation 9.
  """
  attack_key, noise_key, model_key = keys.uses(key, len(batch.images), 3)
  epsilon = schedules.warm_up(epsilon, progress.epoch, epsilon_warmup_epochs)
  noise = smoothing.sample_noise(noise_key, batch.images, sigma=sigma, num_noise=num_noise)
  attacked, undefined = passes.attacked_images(
      attack_key, attack, network, params, batch_stats, batch, epsilon=epsilon, noise=noise)
  logits, batch_stats = passes.noisy_train_logits(model_key, network, params, batch_stats, attacked,
                                                  noise)
  # Log-probabilities throughout: finite where float32 probabilities underflow.
  log_probs = jax.nn.log_softmax(logits)
  log_mean = smoothing.log_mean_probs(log_probs)
  mean = jnp.exp(log_mean)
  divergence = jnp.mean(jnp.sum(mean * (log_mean - log_probs), axis=-1), axis=0)
  entropy = -jnp.sum(mean * log_mean, axis=-1)
  cross_entropy = passes.mean_cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
  loss = cross_entropy + weight * divergence + eta * entropy
  metrics = {'accuracy': passes.accuracy(logits, batch.labels), 'divergence': divergence,
             'entropy': entropy, 'epsilon': jnp.full_like(loss, epsilon),
             'undefined_attacks': undefined}
  return MethodOutput(loss, batch_stats, metrics)
