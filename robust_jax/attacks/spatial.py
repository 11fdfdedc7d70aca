"""Rotations and translations: the worst of a grid, or of random ones."""

import functools

import jax
import jax.numpy as jnp

from robust_jax import inputs, keys, schema, smoothing
from robust_jax.attacks import compilation, objectives
from robust_jax.attacks.targets import better, reached
from robust_jax.attacks.threat_models import column
from robust_jax.types import AttackResult, Count, Index, NonNegative


@schema.checked
def spatial(key, logits_fn, images, labels, *, epsilon, noise=None, max_angle: NonNegative = 30.,
            max_shift: NonNegative = 3., num_angles: Count = 31, num_shifts: Count = 5,
            num_samples: Index = 0, targets=None):
  """Turns and moves each image, and keeps what raises the cross-entropy most.

  By bilinear interpolation, around the middle, with black where nothing was. The grid has
  num_angles angles and num_shifts shifts down and across, evenly from one end to the other: 775
  images at the defaults, which are the paper's for MNIST and CIFAR-10.

  Args:
    key: one key or [batch] keys, used where num_samples > 0.
    logits_fn: images -> logits, normalisation included; see `pgd_attack`.
    images: [batch, height, width, channel] in [0, 1].
    labels: [batch] int.
    epsilon: how much of max_angle and max_shift is searched, in [0, 1], scalar or [batch]: no
      radius, as there is no norm.
    noise: None, or [num_noise, batch, ...], held fixed, added to what was turned and moved.
    max_angle: in degrees.
    max_shift: in pixels, down and across each.
    num_angles, num_shifts: of the grid; odd, so that no turn and no shift are in it.
    num_samples: 0: the grid. k: the worst of k uniform draws instead.
    targets: [batch] int, classes that have to be reached: minus their cross-entropy is raised.

  Returns:
    AttackResult. Images that are misclassified as they are stay so.

  Raises:
    ValueError: images of other axes, or an argument that its annotation excludes.

  Reference:
    Engstrom et al., Exploring the landscape of spatial robustness, 2019.
  """
  victim = smoothing.victim(logits_fn, noise)
  images, labels, epsilon, targets = inputs.attacked(victim, images, labels, epsilon=epsilon,
                                                     targets=targets)
  if images.ndim != 4:
    raise ValueError('images must have shape [batch, height, width, channel], got '
                     f'{images.shape}')
  if inputs.concrete(epsilon):
    inputs.check('epsilon', epsilon, epsilon <= 1, 'at most 1, a share of max_angle and max_shift')
  return compilation.call(
      _spatial, logits_fn, key, victim, images, labels, epsilon, targets, max_angle=max_angle,
      max_shift=max_shift, num_angles=num_angles, num_shifts=num_shifts, num_samples=num_samples)


def _spatial(key, victim, images, labels, epsilon, targets, *, max_angle, max_shift, num_angles,
             num_shifts, num_samples):
  example_keys = keys.per_example(key, len(images))
  largest = jnp.array([max_angle, max_shift, max_shift])
  ends = lambda num: jnp.linspace(-1, 1, num) if num > 1 else jnp.zeros(1)
  grid = jnp.stack(jnp.meshgrid(ends(num_angles), ends(num_shifts), ends(num_shifts)), axis=-1)
  grid = grid.reshape(-1, 3)

  def judged(x):
    logits = victim.logits(x)
    return AttackResult(x, reached(smoothing.majority(logits), labels, targets),
                        objectives.cross_entropy(logits, labels, targets),
                        jnp.zeros(len(x), bool))

  def keep_better(number, best):
    if num_samples:
      draw = lambda k: jax.random.uniform(k, (3,), minval=-1, maxval=1)
      share = jax.vmap(draw)(keys.fold_in(example_keys, number))
    else:
      share = jnp.broadcast_to(grid[number], (len(images), 3))
    new = judged(transform(images, *(share * largest * column(epsilon, share)).T))
    kept = better(new, best)
    return jax.tree.map(lambda k, f: jnp.where(column(first.success, k), f, k), kept, first)

  first = judged(images)
  return jax.lax.fori_loop(0, num_samples or len(grid), keep_better, first)


@functools.partial(jax.vmap, in_axes=(0, 0, 0, 0))
def transform(image, angle, down, across):
  """Images turned by `angle` degrees, counter-clockwise, and then moved, by bilinear interpolation.

  Args:
    image: [batch, height, width, channel].
    angle: [batch], degrees.
    down, across: [batch], pixels.

  Returns:
    Of the shape of `image`; 0 where nothing was.
  """
  height, width, _ = image.shape
  middle = jnp.array([(height - 1) / 2, (width - 1) / 2])
  rows, columns = jnp.meshgrid(jnp.arange(height) - middle[0] - down,
                               jnp.arange(width) - middle[1] - across, indexing='ij')
  cos, sin = jnp.cos(jnp.deg2rad(angle)), jnp.sin(jnp.deg2rad(angle))
  places = (cos * rows + sin * columns + middle[0], cos * columns - sin * rows + middle[1])
  pick = lambda channel: jax.scipy.ndimage.map_coordinates(channel, places, order=1)
  return jax.vmap(pick, 2, 2)(image)
