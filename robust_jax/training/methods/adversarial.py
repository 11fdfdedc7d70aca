"""Adversarial training: of the classifier itself, alone or together with Gaussian noise."""

from typing import Literal

import jax.numpy as jnp

from robust_jax import keys, losses, smoothing
from robust_jax.training import schedules
from robust_jax.training.methods import passes
from robust_jax.types import Attack, Fraction, Index, MethodOutput, NonNegative

Order = Literal['beside', 'attack_then_noise']


def adversarial(key, network, params, batch_stats, batch, progress, *, attack: Attack,
                epsilon: NonNegative, epsilon_warmup_epochs: Index = 0,
                clean_share: Fraction = 0., label_smoothing: Fraction = 0.):
  """Cross-entropy of attacked images: (1 - s) L(x', y) + s L(x, y), x' = attack(x).

  Args:
    attack: the inner maximisation; see `passes.attacked_images`.
    epsilon: its radius in pixel units.
    epsilon_warmup_epochs: epochs over which the radius grows to epsilon.
    clean_share: s, the share of the clean loss; BatchNorm then sees clean and attacked images
      in one batch.
    label_smoothing: see `losses.cross_entropy`; the attack has its own objective.

  The other arguments and the result as `types.Method`; the metric 'accuracy' is that on x'.

  With one step, attack 'fgsm', it is robust optimisation (Shaham et al., algorithm 1: an update on
  the worst-case points alone), and with a clean_share of alpha the mixture of Goodfellow et al.

  Reference:
    Madry et al., Towards deep learning models resistant to adversarial attacks, 2018; Shaham et
    al., Understanding adversarial training, 2015, algorithm 1 and equation 3.
  """
  attack_key, model_key, clean_key = keys.uses(key, len(batch.images), 3)
  epsilon = schedules.warm_up(epsilon, progress.epoch, epsilon_warmup_epochs)
  attacked, undefined = passes.attacked_images(
      attack_key, attack, network, params, batch_stats, batch, epsilon=epsilon)
  images, image_keys = ([attacked], [model_key]) if clean_share == 0 else (
      [attacked, batch.images], [model_key, clean_key])
  return _mixed_loss(network, params, batch_stats, batch.labels, images, image_keys,
                     share=clean_share, epsilon=epsilon, undefined=undefined,
                     label_smoothing=label_smoothing)


def noisy_adversarial(key, network, params, batch_stats, batch, progress, *, attack: Attack,
                      epsilon: NonNegative, sigma: NonNegative,
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
  attack_key, noise_key, model_key, noisy_key = keys.uses(key, len(batch.images), 4)
  epsilon = schedules.warm_up(epsilon, progress.epoch, epsilon_warmup_epochs)
  noise = smoothing.sample_noise(noise_key, batch.images, sigma=sigma, num_noise=1)[0]
  attacked, undefined = passes.attacked_images(
      attack_key, attack, network, params, batch_stats, batch, epsilon=epsilon)
  images, image_keys = ([attacked + noise], [model_key]) if order == 'attack_then_noise' else (
      [attacked, batch.images + noise], [model_key, noisy_key])
  return _mixed_loss(network, params, batch_stats, batch.labels, images, image_keys,
                     share=noise_share, epsilon=epsilon, undefined=undefined,
                     label_smoothing=label_smoothing)


def _mixed_loss(network, params, batch_stats, labels, images, image_keys, *, share, epsilon,
                undefined, label_smoothing):
  """(1 - share) L(images[0], y) + share L(images[1], y); of a single array of images its loss."""
  logits, batch_stats = passes.train_logits(network, params, batch_stats, images, image_keys)
  loss, *beside = (losses.cross_entropy(z, labels, label_smoothing=label_smoothing)
                   for z in logits)
  if beside:
    loss = (1 - share) * loss + share * beside[0]
  metrics = {'accuracy': passes.accuracy(logits[0], labels),
             'epsilon': jnp.full_like(loss, epsilon), 'undefined_attacks': undefined}
  return MethodOutput(loss, batch_stats, metrics)
