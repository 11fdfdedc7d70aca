"""DDN: decoupled direction and norm, an l2 attack that looks for the smallest perturbation."""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from robust_jax import inputs, keys, schema, smoothing
from robust_jax.attacks import compilation, objectives, threat_models
from robust_jax.attacks.pgd import iterate
from robust_jax.attacks.targets import reached
from robust_jax.attacks.threat_models import column, norms
from robust_jax.types import AttackResult, Interval, NonNegative

Steps = Annotated[int, Interval(2)]
Gamma = Annotated[float, Interval(0, 1, open_high=True)]
Rounding = Literal['inside', 'nearest', 'none']

_LEVELS = 255
# Half the distance of two grey levels: the perturbation of a pixel that rounding takes away.
_HALF_LEVEL = 1 / (2 * _LEVELS)
# The order in which equal perturbations of pixels are rounded away: parts of a grey level.
_SPREAD = 1e-3
# Of the interval of thresholds, down to the resolution of float32.
_HALVINGS = 24


@schema.checked
def ddn(key, logits_fn, images, labels, *, epsilon, noise=None, norm: Literal['l2'] = 'l2',
        num_steps: Steps = 20, init_norm: NonNegative = 1., gamma: Gamma = 0.05,
        rounding: Rounding = 'inside'):
  """Ascends the cross-entropy on a sphere that shrinks after a success and grows after a failure.

  With delta = 0 and rho = init_norm at first, for t = 1, ..., T:

  1. If x + delta is misclassified and delta the smallest such perturbation so far, it is kept.
  2. delta <- delta + a_t g / ||g||, a_t = 0.01 + 0.495 (1 + cos(pi t / T)), g the gradient.
  3. rho <- (1 - gamma) rho if x + delta was misclassified, else (1 + gamma) rho, and at most the
     distance from x to the farthest corner of the box.
  4. delta <- rho delta / ||delta||; x + delta is rounded to grey levels k / 255 and clipped to
     [0, 1].

  Where g is not finite, step 2 is left out, and the example is marked `undefined`.

  So delta = 0 is tested, and the iterate after the last step would not be, and is not made. What
  was kept, or 0, is scaled down to the l2 norm epsilon where it is longer.

  Args:
    key: one key or [batch] keys: directions at a zero gradient.
    logits_fn: images -> logits, normalisation included; a `jax.tree_util.Partial` is compiled
      once, see `pgd_attack`.
    images: [batch, ...] in [0, 1].
    labels: [batch] int.
    epsilon: the largest l2 norm in pixel units, scalar or [batch]; inf: the smallest perturbation
      found, at any norm.
    noise: None, or [num_noise, batch, ...] from `smoothing.sample_noise`, held fixed: the gradient
      is that of the SmoothAdv objective, and misclassified is what the majority vote of the hard
      predictions of the noisy copies gets wrong. Ties go to the lower class, as in the authors'
      code: of two copies, those of an image of a high class are easily misclassified.
    norm: 'l2', the only one that it is made for.
    num_steps: T, at least 2: one would test the images alone.
    init_norm: the first rho in pixel units, 1 in Rony et al. and in the authors' evaluation of
      SmoothAdv: no perturbation is then longer than (1 + gamma)^T. 0: epsilon, as in its training;
      none for an epsilon of inf.
    gamma: how fast rho changes, 0.05 in Rony et al. and in the training of SmoothAdv. 0: the
      authors' choice in its evaluation, 1 - (3 / 510 / epsilon)^(1 / T), with which T successes
      bring rho from epsilon down to 3 / 510; none for an epsilon below that, or of inf.
    rounding: of a perturbation that was scaled down to epsilon, to multiples of 1/255. 'nearest',
      as the authors' code, may exceed epsilon by sqrt(pixels) / 510. 'inside' never does: each
      pixel is rounded towards zero, but of those that are nearest to the level above as many are
      rounded to it as epsilon allows. (Towards zero alone, a perturbation of about a level a pixel
      would vanish.) 'none' rounds nothing, in the steps neither.

  Returns:
    AttackResult. `success` is judged at the returned images, as `misclassified` above; the
    objective is the cross-entropy, or with noise the SmoothAdv objective.

  Raises:
    ValueError: another norm, an unknown rounding, num_steps < 1, or an epsilon of inf where
      init_norm or gamma is made of it.

  Reference:
    Rony et al., Decoupling direction and norm for efficient gradient-based L2 adversarial attacks
    and defenses, 2019, algorithm 1; Salman et al. 2019, section 2.2 (the smoothed classifier).
  """
  victim = smoothing.victim(logits_fn, noise)
  images, labels, epsilon, _ = inputs.attacked(victim, images, labels, epsilon=epsilon,
                                               any_radius=init_norm != 0 and gamma != 0)
  return compilation.call(_ddn, logits_fn, key, victim, images, labels, epsilon,
                          num_steps=num_steps, init_norm=init_norm, gamma=gamma, rounding=rounding)


def _ddn(key, victim, images, labels, epsilon, *, num_steps, init_norm, gamma, rounding):
  example_keys = keys.per_example(key, len(images))
  epsilon = jnp.broadcast_to(epsilon, (len(images),))
  if gamma == 0:
    gamma = 1 - (3 * _HALF_LEVEL / jnp.maximum(epsilon, 3 * _HALF_LEVEL)) ** (1 / num_steps)
  steepest = threat_models.l2(1.).steepest
  farthest = norms(jnp.maximum(images, 1 - images), 'l2')

  def judge(x):
    """([batch] objective, [batch] misclassified) from one pass through the network."""
    logits = victim.logits(x)
    success = reached(smoothing.majority(logits), labels)
    return objectives.cross_entropy(logits, labels), success

  def summed(x):
    objective, wrong = judge(x)
    return jnp.sum(objective), wrong

  def keep(best, delta, wrong):
    kept, least = best
    size = norms(delta, 'l2')
    smaller = wrong & (size < least)
    return jnp.where(column(smaller, delta), delta, kept), jnp.where(smaller, size, least)

  def step(t, carry):
    delta, rho, best, undefined = carry
    gradient, wrong = jax.grad(summed, has_aux=True)(images + delta)
    best = keep(best, delta, wrong)
    stuck = ~threat_models.all_finite(gradient)
    # No step is taken along it; a gradient of zero would have a direction drawn.
    gradient = jnp.where(column(stuck, gradient), 1, gradient)
    length = 0.01 + 0.495 * (1 + jnp.cos(math.pi * (t + 1) / num_steps))
    moved = delta + length * steepest(keys.fold_in(example_keys, t), gradient)
    delta = jnp.where(column(stuck, delta), delta, moved)
    rho = jnp.minimum(rho * jnp.where(wrong, 1 - gamma, 1 + gamma), farthest)
    moved = images + _scaled(delta, rho)
    if rounding != 'none':
      moved = jnp.round(moved * _LEVELS) / _LEVELS
    return jnp.clip(moved, 0, 1) - images, rho, best, undefined | stuck

  zero = jnp.zeros_like(images)
  rho = epsilon if init_norm == 0 else jnp.full_like(epsilon, init_norm)
  nothing = (zero, jnp.full_like(epsilon, jnp.inf))
  delta, _, best, undefined = iterate(
      num_steps - 1, step, (zero, rho, nothing, jnp.zeros(len(images), bool)))
  delta, size = keep(best, delta, judge(images + delta)[1])
  # No perturbation is longer than to the farthest corner: an epsilon of inf asks for no more.
  within = _within(delta, size, jnp.minimum(epsilon, farthest), rounding)
  adversarial = jnp.clip(images + within, 0, 1)
  objective, wrong = judge(adversarial)
  return AttackResult(adversarial, wrong, objective, undefined)


def _within(delta, size, epsilon, rounding):
  """delta, of l2 norm `size` (inf: none was found), scaled down to epsilon where it is longer."""
  # Not what only rounding has made longer: a grey level less would come of it.
  long = jnp.isfinite(size) & (size > epsilon * (1 + 1e-6))
  shorter = _scaled(delta, epsilon)
  if rounding == 'inside':
    shorter = _rounded_inside(shorter, epsilon)
  elif rounding == 'nearest':
    shorter = jnp.round(shorter * _LEVELS) / _LEVELS
  return jnp.where(column(long, delta), shorter, delta)


def _rounded_inside(delta, epsilon):
  """delta, of l2 norm epsilon [batch], in multiples of 1/255 whose norm is epsilon at most.

  A pixel is rounded away from zero where what rounding towards zero takes from it is above the
  least threshold in [1/2, 1] with which the norm is not exceeded. Perturbations that were rounded
  before they were scaled come in a few sizes only: pixels of one size take turns.
  """
  size = jnp.abs(delta) * _LEVELS
  below = jnp.floor(size)
  # Multiples of 2^32 / golden ratio, modulo 2^32: evenly spread over any part of the image.
  turn = jnp.arange(math.prod(delta.shape[1:]), dtype=jnp.uint32) * jnp.uint32(2654435769)
  turn = turn.reshape(delta.shape[1:]).astype(delta.dtype) / 2.**32
  rest = size - below + _SPREAD * turn

  def levels(threshold):
    return below + (rest > column(threshold, delta)).astype(below.dtype)

  def halve(_, interval):
    low, high = interval
    middle = (low + high) / 2
    # Squares of whole levels: float32 adds them exactly.
    fits = norms(levels(middle), 'l2') <= epsilon * _LEVELS
    return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

  # Towards zero, at the upper end, always fits.
  interval = jnp.full_like(epsilon, 0.5), jnp.full_like(epsilon, 1 + _SPREAD)
  threshold = jax.lax.fori_loop(0, _HALVINGS, halve, interval)[1]
  return jnp.sign(delta) * levels(threshold) / _LEVELS


def _scaled(delta, norm):
  """delta with the l2 norms `norm` [batch]; 0 stays 0."""
  size = norms(delta, 'l2')
  return delta * column(jnp.where(size > 0, norm / jnp.where(size > 0, size, 1), 0), delta)
