"""Adversarial training of the base classifier together with Gaussian noise."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from robust_jax import keys, losses, smoothing
from robust_jax.training import schedules
from robust_jax.types import Attack, Fraction, Index, MethodOutput, NonNegative

Order = Literal['beside', 'attack_then_noise']


def noisy_adversarial(key, network, params, batch_stats, batch, memory, progress, *,
                      attack: Attack, epsilon: NonNegative, sigma: NonNegative,
                      order: Order = 'attack_then_noise', noise_share: Fraction = 0.5,
                      epsilon_warmup_epochs: Index = 0, label_smoothing: Fraction = 0.):
  """Attacks the classifier itself at the image, without noise; one draw n ~ N(0, sigma^2 I).

  With x' = attack(x), the first two of the four orders that the authors of SmoothAdv compare:

  1. 'beside': (1 - s) L(x', y) + s L(x + n, y), noisy images beside attacked ones;
  2. 'attack_then_noise': L(x' + n, y).

  The third, which attacks the classifier at x + n, is `smoothadv` with one draw, where x, and not
  x + n, is kept in the box; with several, `smoothadv` is the fourth. Certified accuracy was the
  higher the later in this list.

  Args:
    attack: the inner maximisation; it is given no noise.
    epsilon: its radius in pixel units; 0 is Gaussian augmentation, beside the images themselves
      for 'beside'.
    sigma: standard deviation of the noise in pixel units; 0 is adversarial training, with the
      clean share s for 'beside'.
    order: 'beside' or 'attack_then_noise'.
    noise_share: s of 'beside': 0 is adversarial training, 1 Gaussian augmentation. BatchNorm sees
      attacked and noisy images in one batch.
    epsilon_warmup_epochs: epochs over which the radius grows to epsilon.
    label_smoothing: see `losses.cross_entropy`; the attack has its own objective.

  The other arguments and the result as `types.Method`; the metric 'accuracy' is that on x' + n, of
  'beside' that on x'.

  Reference:
    Salman et al. 2019, on attacking the base classifier instead of the smoothed one.
  """
  attack_key, noise_key, model_key, clean_key = keys.uses(key, len(batch.images), 4)
  cross_entropy = functools.partial(losses.cross_entropy, label_smoothing=label_smoothing)
  epsilon = schedules.warm_up(epsilon, progress.epoch, epsilon_warmup_epochs)
  noise = smoothing.sample_noise(noise_key, batch.images, sigma=sigma, num_noise=1)[0]
  variables = jax.lax.stop_gradient({'params': params, 'batch_stats': batch_stats})
  attacked = jax.lax.stop_gradient(
      attack(attack_key, network.eval_logits(variables), batch.images, batch.labels,
             epsilon=epsilon).images)
  if order == 'attack_then_noise':
    logits, batch_stats = network.train_logits(params, batch_stats, attacked + noise, model_key)
    loss = cross_entropy(logits, batch.labels)
  else:
    both = jnp.concatenate([attacked, batch.images + noise])
    both_keys = jnp.concatenate([model_key, clean_key])
    both_logits, batch_stats = network.train_logits(params, batch_stats, both, both_keys)
    logits, noisy_logits = jnp.split(both_logits, 2)
    loss = ((1 - noise_share) * cross_entropy(logits, batch.labels)
            + noise_share * cross_entropy(noisy_logits, batch.labels))
  metrics = {
      'accuracy': (jnp.argmax(logits, axis=-1) == batch.labels).astype(jnp.float32),
      'epsilon': jnp.full_like(loss, epsilon),
  }
  return MethodOutput(loss, batch_stats, metrics, memory)
