"""Square: random search by squares of pixels, which asks the classifier for its logits alone."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_jax import inputs, keys, schema, smoothing
from robust_jax.attacks import compilation, objectives, threat_models
from robust_jax.attacks.targets import reached
from robust_jax.attacks.threat_models import column
from robust_jax.types import Array, AttackResult, Count, Interval

Share = Annotated[float, Interval(0, 1, open_low=True)]

# The area of squares is halved after these queries.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# l1 and l2 begin with 5 x 5 tiles.
_TILES = 5
# Of a perturbation: keeps l1's projection on the right side of epsilon.
_INSIDE = 1 - 1e-6


class _Search(NamedTuple):
  """The point of the largest margin so far and whether it is misclassified, [batch, ...] each."""

  query: Array
  x: Array
  margin: Array
  success: Array


@schema.checked
def square_attack(key, logits_fn, images, labels, *, epsilon, noise=None,
                  norm: threat_models.Norm = 'linf', num_queries: Count = 5000,
                  restarts: Count = 1, area: Share = 0.8, targets=None, only=None):
  """Raises the margin max_{j != y} z_j - z_y by changes of one square, without gradients.

  A change is kept where it raises the margin or is misclassified. The side of the square is
  sqrt(area h w), and the area is halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000
  queries.

  linf: from stripes of +-epsilon, one sign a column and channel; a change adds +-2 epsilon to all
  pixels of the square, one sign a channel. l2 and l1: from a tiling by a pattern of two opposite
  pyramids; a change moves what a second square W2 has of epsilon to the first, W1. With eta the
  pattern (of norm one, in either direction), delta_W1 becomes proportional to
  +-eta + delta_W1 / ||delta_W1||, a sign a channel, with, in each channel of C, the l2 norm

      sqrt(max(epsilon^2 - ||delta||^2, 0) / C + ||delta_{W1 u W2}||^2)

  or the l1 norm max(epsilon - ||delta||, 0) + C ||delta_{W1 u W2}||, and delta_W2 becomes 0 outside
  W1. In l2 delta is then scaled to norm epsilon and clipped to the box, in l1 projected.

  Args:
    key: one key or [batch] keys.
    logits_fn: images -> logits, normalisation included; see `pgd_attack`.
    images: [batch, height, width, channel] in [0, 1].
    labels: [batch] int.
    epsilon: radius in pixel units, scalar or [batch].
    noise: None, or [num_noise, batch, ...], held fixed.
    norm: 'linf', 'l2' or 'l1'.
    num_queries: changes tried for each image; none for what is misclassified.
    restarts: independent searches, each on what is not misclassified yet.
    area: share of the image that the first squares cover.
    targets: [batch] int, classes that have to be reached: the margin is z_t - max_{j != t} z_j.
    only: [batch] int, below restarts: each image's search of this number alone; see `apgd_attack`.

  Returns:
    AttackResult; the objective is the margin.

  Raises:
    ValueError: images of other axes, or an argument that its annotation excludes.

  Reference:
    Andriushchenko et al., Square attack: a query-efficient black-box adversarial attack via random
    search, 2020, algorithms 1 to 3; Croce & Hein 2021, appendix B (l1).
  """
  victim = smoothing.victim(logits_fn, noise)
  images, labels, epsilon, targets = inputs.attacked(
      victim, images, labels, epsilon=epsilon, targets=targets, norm=norm)
  if images.ndim != 4:
    raise ValueError(f'images must have shape [batch, height, width, channel], got {images.shape}')
  return compilation.call(_square, logits_fn, key, victim, images, labels, epsilon, targets, only,
                          norm=norm, num_queries=num_queries, restarts=restarts, area=area)


def _square(key, victim, images, labels, epsilon, targets, only, *, norm, num_queries, restarts,
            area):
  example_keys = keys.per_example(key, len(images))
  epsilon = jnp.broadcast_to(epsilon, (len(images),))
  height, width = images.shape[1:3]
  sides = _sides(num_queries, area, height, width, norm)
  sizes, kind = np.unique(sides, return_inverse=True)
  patterns = jnp.asarray(np.stack([_padded(_pattern(size, norm), max(sizes)) for size in sizes]))
  sides, kind = jnp.asarray(sides), jnp.asarray(kind)

  def judge(x):
    logits = victim.logits(x)
    return (objectives.margin(logits, labels, targets),
            reached(smoothing.majority(logits), labels, targets))

  def change(query, query_keys, delta):
    """delta [batch, ...] with a square changed."""
    one = {'linf': _change_linf, 'l2': _change_l2, 'l1': _change_l1}[norm]
    return jax.vmap(one, (0, 0, 0, None, None))(
        query_keys, delta, epsilon, sides[query], patterns[kind[query]])

  def bounded(x):
    if norm == 'linf':
      x = images + jnp.clip(x - images, -column(epsilon, x), column(epsilon, x))
    elif norm == 'l2':
      size = threat_models.norms(x - images, 'l2')
      x = images + (x - images) * column(epsilon / jnp.where(size > 0, size, 1), x)
    else:
      x = threat_models.make('l1', _INSIDE * epsilon).project(x, images)
    return jnp.clip(x, 0, 1)

  def search(number, best):
    own_keys = keys.fold_in(example_keys, number)

    def query(state):
      # The first draws of a key are the start's.
      delta = change(state.query, keys.fold_in(own_keys, state.query + 1), state.x - images)
      x = bounded(images + delta)
      margin, success = judge(x)
      better = ~state.success & ((margin > state.margin) | success)
      return _Search(
          state.query + 1, jnp.where(column(better, x), x, state.x),
          jnp.where(better, margin, state.margin), state.success | success)

    start = jax.vmap(_start_linf if norm == 'linf' else _start_tiles, (0, 0, 0, None))(
        keys.fold_in(own_keys, 0), images, epsilon, norm)
    start = bounded(images + start)
    start = jnp.where(column(best.success, start), best.images, start)
    margin, success = judge(start)
    found = jax.lax.while_loop(
        lambda state: (state.query < num_queries) & ~state.success.all(), query,
        _Search(jnp.int32(0), start, margin, success | best.success))
    new = best._replace(images=found.x, success=found.success, objective=found.margin)
    better = ~best.success & (new.success | (new.objective > best.objective))
    return jax.tree.map(lambda n, b: jnp.where(column(better, n), n, b), new, best)

  margin, success = judge(images)
  best = AttackResult(images, success, margin, jnp.zeros(len(images), bool))
  return jax.lax.fori_loop(0, restarts, search, best) if only is None else search(only, best)


def _sides(num_queries, area, height, width, norm):
  """The side of each query's square: [num_queries] int."""
  halvings = np.searchsorted(_HALVED_AFTER, np.arange(num_queries))
  sides = np.round(np.sqrt(area / 2.**halvings * height * width)).astype(int)
  if norm == 'linf':
    sides = np.maximum(sides, 1)
  else:
    sides = np.maximum(sides, 3)
    sides += sides % 2 == 0
  return np.minimum(sides, min(height, width))


def _pyramid(height, width, power):
  """Rectangles around the middle, one pixel larger on each side than the one before, summed.

  The k-th has the weight 1 / k^power.
  """
  total = np.zeros((height, width))
  middle = height // 2, width // 2
  for k in range(max(middle) + 1):
    rows, columns = (slice(max(m - k, 0), m + k + 1) for m in middle)
    total[rows, columns] += 1 / (k + 1)**power
  return total


def _pattern(size, norm):
  """Two pyramids of opposite signs, one above the other, of norm one: [size, size]."""
  if norm == 'linf':
    return np.zeros((size, size), np.float32)
  power, order = {'l2': (2, 2), 'l1': (4, 1)}[norm]
  above, below = (_pyramid(rows, size, power) for rows in (size // 2, size - size // 2))
  halves = []
  for half in (above, -below):
    norm_of_half = np.linalg.norm(half.ravel(), order)
    halves.append(half / norm_of_half if norm_of_half else half)
  pattern = np.concatenate(halves)
  return (pattern / np.linalg.norm(pattern.ravel(), order)).astype(np.float32)


def _padded(pattern, size):
  return np.pad(pattern, (0, size - len(pattern)))


def _signs(key, shape):
  return jnp.where(jax.random.bernoulli(key, shape=shape), 1., -1.)


def _window(key, shape, side):
  """(first row, first column) of a random square, and its mask [height, width, 1]."""
  height, width = shape[:2]
  top = jax.random.randint(keys.fold_in(key, 0), (), 0, height - side + 1, jnp.int32)
  left = jax.random.randint(keys.fold_in(key, 1), (), 0, width - side + 1, jnp.int32)
  return (top, left), _mask(shape, top, left, side)


def _mask(shape, top, left, side):
  rows, columns = jnp.arange(shape[0]) - top, jnp.arange(shape[1]) - left
  inside = lambda places: (places >= 0) & (places < side)
  return (inside(rows)[:, None] & inside(columns)[None, :])[..., None].astype(jnp.float32)


def _placed(pattern, shape, top, left, side, turned):
  """`pattern` [size, size] within its square, 0 elsewhere: [height, width, 1]."""
  rows, columns = (jnp.clip(jnp.arange(length) - first, 0, len(pattern) - 1)
                   for length, first in zip(shape, (top, left)))
  pattern = jnp.where(turned, pattern.T, pattern)
  return pattern[rows[:, None], columns[None, :]][..., None] * _mask(shape, top, left, side)


def _start_linf(key, image, epsilon, norm):
  del norm
  return epsilon * jnp.broadcast_to(_signs(key, (1, *image.shape[1:])), image.shape)


def _start_tiles(key, image, epsilon, norm):
  height, width, channels = image.shape
  side = max(height // _TILES, 1)
  # An edge that no whole tile fits into stays as it is, half of it on either side.
  first = max(height - side * _TILES, 0) // 2
  tiles = (height - first) // side, (width - first) // side
  turned = jax.random.bernoulli(keys.fold_in(key, 0), shape=tiles)
  signs = _signs(keys.fold_in(key, 1), (*tiles, channels))
  rows, columns = jnp.arange(height) - first, jnp.arange(width) - first
  inside = lambda places, count: (places >= 0) & (places < count * side)
  mask = inside(rows, tiles[0])[:, None] & inside(columns, tiles[1])[None, :]
  tile = rows[:, None] // side, columns[None, :] // side
  place = rows[:, None] % side, columns[None, :] % side
  pattern = jnp.asarray(_pattern(side, norm))
  own = jnp.where(turned[tile], pattern[place[::-1]], pattern[place])
  delta = jnp.where(mask, own, 0.)[..., None] * signs[tile]
  if norm == 'l1':
    return delta
  return delta * epsilon / jnp.maximum(jnp.linalg.norm(delta.ravel()), 1e-12)


def _change_linf(key, delta, epsilon, side, pattern):
  del pattern
  _, mask = _window(keys.fold_in(key, 0), delta.shape, side)
  return delta + 2 * epsilon * mask * _signs(keys.fold_in(key, 1), (1, 1, delta.shape[-1]))


def _change_l2(key, delta, epsilon, side, pattern):
  channel_norm = lambda x: jnp.sqrt(jnp.sum(x**2, axis=(0, 1), keepdims=True))
  unused = jnp.maximum(epsilon**2 - jnp.sum(delta**2), 0)
  length = lambda windows: jnp.sqrt(unused / delta.shape[-1] + channel_norm(windows)**2)
  return _moved(key, delta, side, pattern, channel_norm, length)


def _change_l1(key, delta, epsilon, side, pattern):
  channel_norm = lambda x: jnp.sum(jnp.abs(x), axis=(0, 1), keepdims=True)
  unused = jnp.maximum(epsilon - jnp.sum(jnp.abs(delta)), 0)
  length = lambda windows: unused + delta.shape[-1] * channel_norm(windows)
  return _moved(key, delta, side, pattern, channel_norm, length)


def _moved(key, delta, side, pattern, channel_norm, length):
  """delta with the second of two random squares emptied for the first."""
  place, first = _window(keys.fold_in(key, 0), delta.shape, side)
  _, second = _window(keys.fold_in(key, 1), delta.shape, side)
  turned = jax.random.bernoulli(keys.fold_in(key, 2))
  signs = _signs(keys.fold_in(key, 3), (1, 1, delta.shape[-1]))
  old = delta * first
  new = _placed(pattern, delta.shape, *place, side, turned) * signs + old / (
      1e-12 + channel_norm(old))
  new *= length(delta * jnp.maximum(first, second)) / (1e-12 + channel_norm(new))
  return delta * (1 - jnp.maximum(first, second)) + new
