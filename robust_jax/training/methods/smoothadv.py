"""SmoothAdv: adversarial training of the Gaussian-smoothed classifier."""

from typing import Literal

import jax
import jax.numpy as jnp

from robust_jax import keys, losses, smoothing
from robust_jax.training import schedules
from robust_jax.training.methods import passes
from robust_jax.types import Attack, Count, Fraction, Index, MethodOutput, NonNegative


def smoothadv(key, network, params, batch_stats, batch, progress, *, attack: Attack,
              epsilon: NonNegative, sigma: NonNegative, num_noise: Count = 2,
              train_noise: Literal['all', 'first'] = 'all',
              loss: Literal['mean', 'plugin'] = 'mean', epsilon_warmup_epochs: Index = 0,
              label_smoothing: Fraction = 0.):
  """Trains on images that attack the smoothed classifier.

  n_1..n_m are drawn once; x' = attack(x) ascends -log (1/m) sum_i F(x + n_i)_y under them, in
  evaluation mode, and the update sees the same draws:

  - loss 'mean': (1/m) sum_i -log F(x' + n_i)_y, as the authors' code and protocols;
  - loss 'plugin': -log (1/m) sum_i F(x' + n_i)_y, the paper's formula.

  Args:
    attack: the inner maximisation; it is given the noise.
    epsilon: its radius in pixel units.
    sigma: standard deviation of the noise in pixel units; 0 is adversarial training.
    num_noise: m.
    train_noise: update on all m noisy copies, or on the first only.
    loss: 'mean' or 'plugin'.
    epsilon_warmup_epochs: epochs over which the radius grows to epsilon.
    label_smoothing: see `losses.cross_entropy`; the attack has its own objective.

  The other arguments and the result as `types.Method`; the metric 'accuracy' is the share of
  noisy copies of x' classified correctly.

  Reference:
    Salman et al., Provably robust deep learning via adversarially trained smoothed classifiers,
    2019, section 2.2 and algorithm 1.
  """
  attack_key, noise_key, model_key = keys.uses(key, len(batch.images), 3)
  epsilon = schedules.warm_up(epsilon, progress.epoch, epsilon_warmup_epochs)
  noise = smoothing.sample_noise(noise_key, batch.images, sigma=sigma, num_noise=num_noise)
  attacked, undefined = passes.attacked_images(
      attack_key, attack, network, params, batch_stats, batch, epsilon=epsilon, noise=noise)
  if train_noise == 'first':
    noise = noise[:1]
  logits, batch_stats = passes.noisy_train_logits(model_key, network, params, batch_stats, attacked,
                                                  noise)
  if loss == 'plugin':
    # Log-probabilities are logits too: softmax changes nothing in them.
    log_probs = jax.nn.log_softmax(logits)
    example_loss = losses.cross_entropy(smoothing.log_mean_probs(log_probs), batch.labels,
                                        label_smoothing=label_smoothing)
  else:
    example_loss = passes.mean_cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
  metrics = {'accuracy': passes.accuracy(logits, batch.labels),
             'epsilon': jnp.full_like(example_loss, epsilon), 'undefined_attacks': undefined}
  return MethodOutput(example_loss, batch_stats, metrics)
