"""Training for deterministic certificates: losses of bounds of the margins, in linf.

Bounds are those of the network in evaluation mode, with the batch statistics of the clean images
(`passes.batch_classifier`). The radius grows from 0: see `schedules.ramp`, whose arguments are
the methods' `warmup_epochs`, `ramp_epochs` and `ramp`. An `epsilon` of config.method trains for
another radius than config.epsilon.
"""

import jax
import jax.numpy as jnp

from robust_jax import bounds, keys, losses
from robust_jax.training import schedules
from robust_jax.training.methods import passes
from robust_jax.types import Attack, Fraction, MethodOutput, NonNegative, Positive

# Of the regulariser: the least radius, and what the ratios should be at least.
_LEAST_RADIUS = 1e-6
_TOLERANCE = 0.5


def ibp(key, network, params, batch_stats, batch, progress, *, epsilon: NonNegative,
        warmup_epochs: NonNegative = 0., ramp_epochs: NonNegative = 0.,
        ramp: schedules.Ramp = 'linear', kappa_start: Fraction = 1., kappa_end: Fraction = 0.5,
        regularizer: NonNegative = 0.):
  """kappa CE(z(x), y) + (1 - kappa) CE(-m, y), m_j the least z_y - z_j by intervals.

  z are logits; -m are those of the worst case that intervals leave, in which the last affine
  layers are one with the difference (see `bounds.margins`).

  Args:
    epsilon: linf radius in pixel units; images stay in [0, 1].
    warmup_epochs: epochs of radius 0.
    ramp_epochs: epochs after those, in which the radius grows to epsilon.
    ramp: 'linear' or 'smooth'.
    kappa_start: weight of the clean loss at radius 0.
    kappa_end: at epsilon; in between it changes as the radius does.
    regularizer: lambda of lambda (1 - radius / epsilon) times the sum of `tightness` and
      `balance`; its batch is that of one device.

  The other arguments and the result as `types.Method`; the metric 'accuracy' is that on x,
  'verified' the share of examples with all m_j > 0.

  Reference:
    Gowal et al., On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust
    Models, 2018; the regularizer: Shi et al., Fast Certified Robust Training with Short Warmup,
    2021, and their code.
  """
  return crown_ibp(key, network, params, batch_stats, batch, progress, epsilon=epsilon,
                   warmup_epochs=warmup_epochs, ramp_epochs=ramp_epochs, ramp=ramp,
                   kappa_start=kappa_start, kappa_end=kappa_end, beta_start=0., beta_end=0.,
                   regularizer=regularizer)


def crown_ibp(key, network, params, batch_stats, batch, progress, *, epsilon: NonNegative,
              warmup_epochs: NonNegative = 0., ramp_epochs: NonNegative = 0.,
              ramp: schedules.Ramp = 'linear', kappa_start: Fraction = 1.,
              kappa_end: Fraction = 0.5, beta_start: Fraction = 1., beta_end: Fraction = 0.,
              regularizer: NonNegative = 0.):
  """As `ibp`, with m = (1 - beta) m_IBP + beta m_CROWN-IBP.

  A step with beta above 0 costs a backward pass a class.

  Args:
    beta_start: beta at radius 0.
    beta_end: at epsilon; in between it changes as the radius does.

  The other arguments and the result as `ibp`.

  Reference:
    Zhang et al., Towards Stable and Efficient Training of Verifiably Robust Neural Networks, 2020.
  """
  share = schedules.ramp(progress.passed, warmup_epochs, ramp_epochs, ramp)
  between = lambda start, end: start + (end - start) * share
  # A number where it is one: the second bound is then not compiled.
  beta = between(beta_start, beta_end) if max(beta_start, beta_end) > 0 else 0.
  clean, batch_stats, _, logits_fn = passes.batch_classifier(
      network, params, batch_stats, batch.images, key)
  radius = _radius(epsilon * share, regularizer)
  bounded, penalty = _bounded(logits_fn, batch, _box(batch.images, radius), share, regularizer,
                              beta=beta)
  kappa = between(kappa_start, kappa_end)
  clean_loss = losses.cross_entropy(clean, batch.labels)
  loss = kappa * clean_loss + (1 - kappa) * losses.cross_entropy(-bounded, batch.labels) + penalty
  return _output(loss, batch_stats, batch, clean, bounded, epsilon * share)


def wong_kolter(key, network, params, batch_stats, batch, progress, *, epsilon: NonNegative,
                warmup_epochs: NonNegative = 0., ramp_epochs: NonNegative = 0.,
                ramp: schedules.Ramp = 'linear'):
  """CE(-m, y), m_j the least z_y - z_j by the dual network of Wong and Kolter.

  Its inner bounds are of this kind too: a step costs a backward pass an entry of every hidden layer
  and image, and is for small networks. Of ReLU networks alone.

  The arguments and the result as `ibp`.

  Reference:
    Wong and Kolter, Provable Defenses against Adversarial Examples via the Convex Outer Adversarial
    Polytope, 2018, theorem 2 and algorithm 1.
  """
  share = schedules.ramp(progress.passed, warmup_epochs, ramp_epochs, ramp)
  clean, batch_stats, _, logits_fn = passes.batch_classifier(
      network, params, batch_stats, batch.images, key)
  bounded = bounds.crown(logits_fn, batch.images, epsilon * share, labels=batch.labels,
                         method='wong_kolter')
  loss = losses.cross_entropy(-bounded, batch.labels)
  return _output(loss, batch_stats, batch, clean, bounded, epsilon * share)


def sabr(key, network, params, batch_stats, batch, progress, *, attack: Attack,
         epsilon: NonNegative, size: Fraction = 0.4, warmup_epochs: NonNegative = 0.,
         ramp_epochs: NonNegative = 0., ramp: schedules.Ramp = 'linear',
         regularizer: NonNegative = 0.):
  """CE(-m, y), m the least margins by intervals in a small box about an attacked image.

  The box has the radius t = size epsilon, and its middle is x' = attack(x), moved to within
  epsilon - t of x, so that the box is in the ball. m is a bound in the box alone: smaller boxes
  regularise less, and are certified by closer bounds.

  Args:
    attack: in linf, against the network with the batch's statistics; see `passes.attacked_images`.
    size: lambda, the box's radius over epsilon; 1 is `ibp` without clean loss.

  The other arguments and the result as `ibp`; the metric 'verified' is of the small boxes.

  Reference:
    Mueller et al., Certified Training: Small Boxes are All You Need, 2023. Their shrinking of
    boxes after each ReLU, for 2/255 on CIFAR-10, is left out.
  """
  attack_key, model_key = keys.uses(key, len(batch.images), 2)
  share = schedules.ramp(progress.passed, warmup_epochs, ramp_epochs, ramp)
  clean, batch_stats, fixed_stats, logits_fn = passes.batch_classifier(
      network, params, batch_stats, batch.images, model_key)
  radius = _radius(epsilon * share, regularizer)
  attacked, undefined = passes.attacked_images(
      attack_key, attack, network, params, fixed_stats, batch, epsilon=radius)
  room = (1 - size) * radius
  middle = batch.images + jnp.clip(attacked - batch.images, -room, room)
  bounded, penalty = _bounded(logits_fn, batch, _box(middle, size * radius), share, regularizer)
  loss = losses.cross_entropy(-bounded, batch.labels) + penalty
  return _output(loss, batch_stats, batch, clean, bounded, epsilon * share,
                 undefined_attacks=undefined)


def mtl_ibp(key, network, params, batch_stats, batch, progress, *, attack: Attack,
            epsilon: NonNegative, alpha: Fraction = 0.5, attack_scale: Positive = 1.,
            warmup_epochs: NonNegative = 0., ramp_epochs: NonNegative = 0.,
            ramp: schedules.Ramp = 'linear', regularizer: NonNegative = 0.):
  """alpha CE(-m, y) + (1 - alpha) CE(z(x'), y), x' = attack(x), m the least margins by intervals.

  Both are of the network with the batch statistics of the clean images, and x' is held fixed.

  Args:
    attack: in linf, against the network with the batch's statistics; see `passes.attacked_images`.
    alpha: weight of the bound; 0 is adversarial training, 1 `ibp` without clean loss.
    attack_scale: the radius of the attack over that of the bound.

  The other arguments and the result as `ibp`; the metric 'attacked_accuracy' is that on x'.

  Reference:
    De Palma et al., Expressive Losses for Verified Robustness via Convex Combinations, 2024.
  """
  attack_key, model_key = keys.uses(key, len(batch.images), 2)
  share = schedules.ramp(progress.passed, warmup_epochs, ramp_epochs, ramp)
  clean, batch_stats, fixed_stats, logits_fn = passes.batch_classifier(
      network, params, batch_stats, batch.images, model_key)
  radius = _radius(epsilon * share, regularizer)
  attacked, undefined = passes.attacked_images(
      attack_key, attack, network, params, fixed_stats, batch, epsilon=attack_scale * radius)
  logits = logits_fn(attacked)
  bounded, penalty = _bounded(logits_fn, batch, _box(batch.images, radius), share, regularizer)
  loss = (alpha * losses.cross_entropy(-bounded, batch.labels)
          + (1 - alpha) * losses.cross_entropy(logits, batch.labels) + penalty)
  return _output(loss, batch_stats, batch, clean, bounded, epsilon * share,
                 attacked_accuracy=passes.accuracy(logits, batch.labels),
                 undefined_attacks=undefined)


def _radius(radius, regularizer):
  """The ratios of the regulariser have no value at 0."""
  return jnp.maximum(radius, _LEAST_RADIUS) if regularizer else radius


def _box(images, radius):
  """[0, 1] within the radius of each pixel, as (lower, upper)."""
  return (jnp.maximum(images - radius, jnp.minimum(images, 0)),
          jnp.minimum(images + radius, jnp.maximum(images, 1)))


def _bounded(logits_fn, batch, box, share, regularizer, beta=0.):
  """(margins [batch, classes], what the regulariser adds to each loss)."""
  bounded, kinks = bounds.margins(logits_fn, *box, batch.labels, beta=beta)
  if not regularizer:
    return bounded, 0.
  if not kinks:
    raise ValueError(f'regularizer must be 0 for a network without ReLU, got {regularizer}')
  weights = batch.mask[:, None] / jnp.maximum(batch.mask.sum(), 1e-9)
  width = jnp.sum(weights * jnp.reshape(box[1] - box[0], (len(batch.mask), -1))) / (
      box[0][0].size * 2)
  penalties = [tightness(width, *kink, weights) + balance(*kink, weights) for kink in kinks]
  return bounded, regularizer * (1 - share) * sum(penalties) / len(kinks)


def tightness(width, lower, upper, weights):
  """max(0, 1 - 2 width / mean((upper - lower) / 2)): how much wider a layer makes intervals.

  Args:
    width: the mean of (upper - lower) / 2 of the image.
    lower: [batch, entries], of what is ahead of a ReLU.
    upper: likewise.
    weights: [batch, 1], of sum 1.

  Reference:
    Shi et al. 2021, with tau = 1/2, divided by tau as in the authors' code.
  """
  wide = jnp.sum(weights * (upper - lower)) / (2 * lower.shape[1])
  return jax.nn.relu(1 - width / jnp.maximum(wide, 1e-12) / _TOLERANCE)


def balance(lower, upper, weights):
  """max(0, 1 - 2 a) + max(0, 1 - 2 v): how unlike ReLUs that are on are to those that are off.

  Of the middles c of the intervals, a is the sum of c where lower > 0 over that of -c where
  upper < 0, and v that of (c - mean c)^2 over the same; of either, the larger is below. It is 0
  where one of them is: so are its gradients.

  The arguments and the reference as `tightness`.
  """
  middle = (lower + upper) / 2
  mean = jnp.sum(weights * middle) / middle.shape[1]
  square = jnp.square(middle - mean)
  total = lambda x, where: jnp.sum(jnp.where(where, weights * x, 0))
  on, off = lower > 0, upper < 0
  return sum(jax.nn.relu(1 - _ratio(first, second) / _TOLERANCE) for first, second in (
      (total(middle, on), total(-middle, off)), (total(square, on), total(square, off))))


def _ratio(first, second):
  """The smaller of two that are not negative over the larger; 0 where one is 0."""
  least, most = jnp.minimum(first, second), jnp.maximum(first, second)
  return jnp.where(least > 0, least / jnp.where(least > 0, most, 1), 0)


def _output(loss, batch_stats, batch, clean, bounded, epsilon, **metrics):
  metrics = {'accuracy': passes.accuracy(clean, batch.labels),
             'verified': bounds.certified(bounded, batch.labels).astype(jnp.float32),
             'epsilon': jnp.full_like(loss, epsilon), **metrics}
  return MethodOutput(loss, batch_stats, metrics)
