"""SmoothMix: less and less confidence on the way to an adversarial example."""

import functools

import jax
import jax.numpy as jnp

from robust_jax import attacks, keys, losses, smoothing
from robust_jax.training import schedules
from robust_jax.training.methods import passes
from robust_jax.types import Attack, Count, Index, MethodOutput, NonNegative, Positive

_STEP = functools.partial(attacks.fgsm, norm='l2')


def smoothmix(key, network, params, batch_stats, batch, progress, *, attack: Attack,
              epsilon: NonNegative, sigma: Positive, num_noise: Count = 2,
              weight: NonNegative = 5., one_step: NonNegative = 0., warmup_epochs: Index = 10):
  """Mean CE(f(x + n_i), y) + eta w 1[argmax Fm = y] mean_i KL(y_mix || F(x_mix + n_i)).

  n_1..n_m ~ N(0, sigma^2 I), drawn once; Fm = mean_i F(x + n_i); x' = attack(x) ascends -log Fm_y
  under the same draws. For each image lambda ~ U[0, 1/2]: x_mix = (1 - lambda) x + lambda x' and
  y_mix = (1 - lambda) Fm + lambda / K, with K classes; the gradient flows through y_mix, as in the
  authors' code. w grows to 1 over warmup_epochs. BatchNorm sees noisy images and mixtures in one
  batch, where the authors' code has a pass for each.

  Args:
    attack: PGD in l2 without a random start; it is given the noise. The authors' T steps of length
      alpha, held by the box alone, are those with step_ratio=1 and epsilon = T alpha, a ball that
      they do not leave.
    epsilon: its radius in pixel units.
    sigma: standard deviation of the noise in pixel units.
    num_noise: m.
    weight: eta; 0 is Gaussian augmentation of m draws.
    one_step: by w times this, along the gradient of -log Fm_y, each image is moved first, and is
      then x in all of the above but the attack ('one-step adversary'); 0: it stays.
    warmup_epochs: epochs over which w grows to 1.

  The other arguments and the result as `types.Method`; the metric 'accuracy' is the share of noisy
  copies of x classified correctly, 'divergence' the second term without eta and w.

  Reference:
    Jeong et al., SmoothMix: training confidence-calibrated smoothed classifiers for certified
    robustness, 2021.
  """
  attack_key, noise_key, model_key, mix_key = keys.uses(key, len(batch.images), 4)
  noise = smoothing.sample_noise(noise_key, batch.images, sigma=sigma, num_noise=num_noise)
  growth = schedules.warm_up(1., progress.epoch, warmup_epochs)
  attacked, undefined = passes.attacked_images(
      attack_key, attack, network, params, batch_stats, batch, epsilon=epsilon, noise=noise)
  images = batch.images
  if one_step:
    images, _ = passes.attacked_images(
        attack_key, _STEP, network, params, batch_stats, batch, epsilon=growth * one_step,
        noise=noise)
  share = 0.5 * jax.vmap(jax.random.uniform)(mix_key)
  toward = share.reshape((-1,) + (1,) * (images.ndim - 1)) * (attacked - images)
  logits, batch_stats = passes.noisy_train_logits(
      model_key, network, params, batch_stats, images, jnp.concatenate([noise, noise + toward]))
  log_probs, log_mixed = jnp.split(jax.nn.log_softmax(logits), 2)
  log_mean = smoothing.log_mean_probs(log_probs)
  log_target = jnp.logaddexp(jnp.log1p(-share)[:, None] + log_mean,
                             jnp.log(share / logits.shape[-1])[:, None])
  divergence = jnp.mean(jnp.sum(jnp.exp(log_target) * (log_target - log_mixed), axis=-1), axis=0)
  divergence = jnp.where(losses.predicted(log_mean) == batch.labels, divergence, 0.)
  cross_entropy = passes.mean_cross_entropy(log_probs, batch.labels, label_smoothing=0.)
  loss = cross_entropy + weight * growth * divergence
  metrics = {'accuracy': passes.accuracy(log_probs, batch.labels), 'divergence': divergence,
             'epsilon': jnp.full_like(loss, epsilon), 'undefined_attacks': undefined}
  return MethodOutput(loss, batch_stats, metrics)
