"""Instance-adaptive adversarial training: every training example has a radius of its own."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from robust_jax import keys, losses, smoothing
from robust_jax.training.methods import passes
from robust_jax.types import Attack, Count, Fraction, Index, MethodOutput, NonNegative, Positive

Variant = Literal['official', 'algorithm1', 'simple']


def iaat(key, network, params, batch_stats, batch, progress, *, attack: Attack,
         variant: Variant = 'official', gamma: NonNegative = 1.9 / 255, beta: Fraction = 0.1,
         warmup_epochs: Index = 10, warmup_epsilon: NonNegative = 8 / 255,
         label_smoothing: Fraction = 0.):
  """Adversarial training within a radius that is learnt for each example.

  e_i, the method's memory batch.aux['radius'] in pixel units, follows what the example withstands.
  In the first `warmup_epochs` epochs e_i = warmup_epsilon; without any it begins at 0, or as
  another run has left it (config.weights). After them, each time example i is met, with e the
  stored radius, it is attacked at e and at e + gamma, and

    t = e + gamma  if it is classified as its label after the attack at e + gamma,
        e          if not, but after the attack at e,
        e - gamma  otherwise;
    e_i <- (1 - beta) e + beta max(0, t),

  which is stored. The loss is the cross-entropy after a third attack, at the new e_i. There is no
  upper bound of e_i. The variants:

  - 'official', the authors' code: t = 0, in the warm-up e_i = 0, where the image itself is not
    classified as its label;
  - 'algorithm1', as printed in the paper: it is not asked for in the rule; where the image itself
    is misclassified, the loss is that of the image itself;
  - 'simple', the paper's first description: one attack, at e; the loss is after it, and
    e_i <- max(0, e + gamma) where it fails, max(0, e - gamma) where it succeeds. No beta.

  The network is in evaluation mode wherever a class is asked for, and the attacked images are held
  fixed in the loss.

  Args:
    attack: the inner maximisation; it is called with a radius per example.
    variant: 'official', 'algorithm1' or 'simple'.
    gamma: by how much larger a radius is tried, in pixel units.
    beta: the weight of the new radius.
    warmup_epochs: epochs with the radius `warmup_epsilon`.
    warmup_epsilon: that radius in pixel units.
    label_smoothing: see `losses.cross_entropy`; the attack has its own objective.

  The other arguments and the result as `types.Method`. The metric 'accuracy' is that after the
  attack, 'clean_accuracy' that of the images in evaluation mode, 'epsilon' the radius attacked at.

  Reference:
    Balaji, Goldstein & Hoffman, Instance adaptive adversarial training: improved accuracy tradeoffs
    in neural nets, 2019, algorithms 1 and 2.
  """
  attack_key, model_key = keys.uses(key, len(batch.images), 2)
  logits_fn = passes.fixed_classifier(network, params, batch_stats)
  adapted = _adapt(
      lambda use, epsilon: attack(keys.fold_in(attack_key, use), logits_fn, batch.images,
                                  batch.labels, epsilon=epsilon),
      lambda images: losses.predicted(logits_fn(images)), batch, progress, variant=variant,
      gamma=gamma, beta=beta, warmup_epochs=warmup_epochs, warmup_epsilon=warmup_epsilon)
  logits, batch_stats = network.train_logits(params, batch_stats, adapted.images, model_key)
  loss = losses.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
  metrics = {'accuracy': passes.accuracy(logits, batch.labels), **adapted.metrics}
  return MethodOutput(loss, batch_stats, metrics, {'radius': adapted.radius})


def iaat_smoothadv(key, network, params, batch_stats, batch, progress, *, attack: Attack,
                   sigma: Positive, num_noise: Count = 2, variant: Variant = 'official',
                   gamma: NonNegative = 1.9 / 255, beta: Fraction = 0.1, warmup_epochs: Index = 10,
                   warmup_epsilon: NonNegative = 8 / 255, label_smoothing: Fraction = 0.):
  """The rule of `iaat` for the Gaussian-smoothed classifier.

  n_1..n_m are drawn once for a step: the attacks ascend the objective smoothed by them
  (SmoothAdv), an example is classified as argmax_c (1/m) sum_i F(x + n_i)_c, and the loss is the
  mean cross-entropy of the noisy copies of the attacked image, (1/m) sum_i -log F(x' + n_i)_y. (A
  vote of so few copies would often be a tie, and ties go to the lower class: what an example
  withstands would depend on how classes are numbered.)

  Args:
    sigma: standard deviation of the noise in pixel units.
    num_noise: m.
    gamma, warmup_epsilon: their defaults are those of `iaat`, which are meant for linf; l2 radii
      are many times as large.

  The other arguments and the result as `iaat`; 'accuracy' is the share of noisy copies of the
  attacked image classified correctly, 'clean_accuracy' that of the images as above.

  Reference:
    The rule: Balaji et al. 2019; the attack and the loss: Salman et al. 2019.
  """
  attack_key, noise_key, model_key = keys.uses(key, len(batch.images), 3)
  noise = smoothing.sample_noise(noise_key, batch.images, sigma=sigma, num_noise=num_noise)
  logits_fn = passes.fixed_classifier(network, params, batch_stats)
  smoothed = smoothing.victim(logits_fn, noise)
  adapted = _adapt(
      lambda use, epsilon: attack(keys.fold_in(attack_key, use), logits_fn, batch.images,
                                  batch.labels, epsilon=epsilon, noise=noise),
      lambda images: losses.predicted(smoothing.mean_logits(smoothed.logits(images))),
      batch, progress, variant=variant, gamma=gamma, beta=beta, warmup_epochs=warmup_epochs,
      warmup_epsilon=warmup_epsilon)
  logits, batch_stats = passes.noisy_train_logits(model_key, network, params, batch_stats,
                                                  adapted.images, noise)
  loss = passes.mean_cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
  metrics = {'accuracy': passes.accuracy(logits, batch.labels), **adapted.metrics}
  return MethodOutput(loss, batch_stats, metrics, {'radius': adapted.radius})


class _Adapted(NamedTuple):
  """Images to train on, the radii to store, and metrics, one entry per example."""

  images: jax.Array
  radius: jax.Array
  metrics: dict[str, jax.Array]


def _adapt(attack_at, classify, batch, progress, *, variant, gamma, beta, warmup_epochs,
           warmup_epsilon):
  """The rule of `iaat`.

  Args:
    attack_at: (use, epsilon [batch]) -> AttackResult within epsilon; each use has its own draws.
    classify: images -> classes [batch].
  """
  radius = batch.aux['radius']
  is_right = lambda images: classify(images) == batch.labels
  clean_right = is_right(batch.images)
  warming = progress.epoch < warmup_epochs
  undefined = jnp.zeros_like(radius)

  def attacked(use, epsilon):
    nonlocal undefined
    result = attack_at(use, epsilon)
    undefined = jnp.maximum(undefined, passes.undefined(result, len(radius)))
    return result.images

  if variant == 'simple':
    epsilon = jnp.where(warming, warmup_epsilon, radius)
    images = attacked(0, epsilon)
    moved = jnp.maximum(radius + jnp.where(is_right(images), gamma, -gamma), 0)
    new_radius = jnp.where(warming, warmup_epsilon, moved)
  else:
    counted = jnp.where(clean_right, 1., 0.) if variant == 'official' else 1.
    withstands = is_right(attacked(0, radius))
    withstands_more = is_right(attacked(1, radius + gamma))
    target = jnp.where(withstands_more, radius + gamma,
                       jnp.where(withstands, radius, radius - gamma))
    moved = (1 - beta) * radius + beta * jnp.maximum(target * counted, 0)
    epsilon = new_radius = jnp.where(warming, warmup_epsilon * counted, moved)
    images = attacked(2, epsilon)
  if variant == 'algorithm1':
    images = jnp.where(clean_right.reshape((-1,) + (1,) * (images.ndim - 1)), images, batch.images)
  metrics = {'clean_accuracy': clean_right.astype(jnp.float32), 'epsilon': epsilon,
             'undefined_attacks': undefined}
  return jax.lax.stop_gradient(_Adapted(images, new_radius.astype(radius.dtype), metrics))
