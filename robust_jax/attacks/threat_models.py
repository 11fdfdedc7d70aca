"""Perturbation sets: a random start, the steepest ascent direction and the projection of each.

A threat model is a pytree, so that epsilon is traced: a scalar or one value per example.
Adversarial images stay in the ball of radius epsilon around the image and in the box [0, 1], up
to float32 rounding. There are three ways of projecting, which give different points for l2 and l1:

- 'ball_then_box' (Madry et al. 2018; the Consistency authors' SmoothAdv),
- 'box_then_ball' (Salman et al. 2019),
- 'joint', the closest point of the intersection (Croce & Hein 2021).

All end in the intersection: the image itself is in the box, each ball projection moves every
coordinate towards it, and clipping to the box never makes a coordinate's perturbation longer. But
what the box takes away, the first two leave unspent: in l1, where steps are sparse, a good part of
epsilon. 'auto' is 'joint' for l1 and 'ball_then_box' for linf and l2. 'ball_only' leaves the box
out: the set is the ball (Shaham et al. 2015).
"""

import functools
from collections.abc import Callable
from typing import Literal, get_args

import flax.struct
import jax
import jax.numpy as jnp

from robust_jax import inputs, keys
from robust_jax.types import Array

Norm = Literal['linf', 'l2', 'l1']
Order = Literal['auto', 'joint', 'ball_then_box', 'box_then_ball', 'ball_only']

# Bisections end at the resolution of float32; an interpolation follows.
_HALVINGS = 26
# A part of a step that is only rounding, and moves no further entry.
_ROUNDING = 1e-6


@flax.struct.dataclass
class ThreatModel:
  """A perturbation set P(x) = {x + delta in [0, 1]: ||delta|| <= epsilon}.

  Attributes:
    epsilon: radius in pixel units, scalar or [batch].
    norm: 'linf', 'l2' or 'l1'.
    order: how projections onto ball and box go together, or that there is no box.
    start_fn: (keys [batch], flat images, epsilon) -> flat perturbations in the ball; epsilon is a
      scalar or [batch, 1].
    step_fn: (keys [batch], flat gradients, length, room) -> flat steps of norm `length`, a scalar
      or [batch, 1]; `room` is what each entry may move along its gradient, None: any distance.
    ball_fn: (flat perturbations, epsilon, room) -> the closest perturbations in the ball whose
      entries are no longer than `room`.
  """

  epsilon: Array
  norm: str = flax.struct.field(pytree_node=False)
  order: Order = flax.struct.field(pytree_node=False)
  start_fn: Callable = flax.struct.field(pytree_node=False)
  step_fn: Callable = flax.struct.field(pytree_node=False)
  ball_fn: Callable = flax.struct.field(pytree_node=False)

  def random(self, key, images):
    """A random point of the set for each image: [batch, ...].

    Drawn in the ball (linf and l2 uniformly, l1 as in `l1`), then projected onto the box.
    """
    rows = _rows(images)
    epsilon = column(self.epsilon, rows)
    point = rows + self.start_fn(keys.per_example(key, len(rows)), rows, epsilon)
    if self.order != 'ball_only':
      point = jnp.clip(point, 0, 1)
    return point.reshape(images.shape)

  def steepest(self, key, gradient):
    """argmax <gradient, v> over ||v|| <= 1 for each example, without a box: [batch, ...].

    Finite for every finite gradient, and with NaN for any other. At a zero gradient: zero for linf
    and l1, for l2 a random unit direction, drawn from `key`.
    """
    rows = _rows(gradient)
    return self.step_fn(keys.per_example(key, len(rows)), rows, 1., None).reshape(gradient.shape)

  def ascend(self, key, images, gradient, length):
    """`images` moved by `length` (scalar or [batch]) along `steepest`; not yet projected.

    In l1 the largest entries of the gradient go as far as the box lets them, one after the other,
    until the length is used up. What is at its end of the box already uses up nothing of it.
    """
    rows, gradient = _rows(images), _rows(gradient)
    room = None if self.order == 'ball_only' else _room(rows, gradient)
    step = self.step_fn(keys.per_example(key, len(rows)), gradient, column(length, rows), room)
    return (rows + step).reshape(images.shape)

  def project(self, adversarial, images):
    """The projection of `adversarial` [batch, ...] onto the set around `images`."""
    center = _rows(images)
    point = _rows(adversarial)
    epsilon = column(self.epsilon, center)
    if self.order == 'box_then_ball':
      point = jnp.clip(point, 0, 1)
    room = _room(center, point - center) if self.order == 'joint' else None
    point = center + self.ball_fn(point - center, epsilon, room)
    if self.order in ('joint', 'ball_then_box'):
      point = jnp.clip(point, 0, 1)
    return point.reshape(images.shape)


def linf(epsilon, *, order: Order = 'auto'):
  """{||delta||_inf <= epsilon}: steepest ascent sign(g), uniform random start.

  Args:
    epsilon: radius in pixel units, scalar or [batch].
    order: see above; all but 'ball_only' give the same point for this norm.
  """
  return _make('linf', epsilon, order, _start_linf, _step_linf, _ball_linf)


def l2(epsilon, *, order: Order = 'auto'):
  """{||delta||_2 <= epsilon}: steepest ascent g / ||g||_2, random start uniform in the ball.

  Args:
    epsilon: radius in pixel units, scalar or [batch].
    order: see above; 'auto' is 'ball_then_box'.
  """
  return _make('l2', epsilon, order, _start_l2, _step_l2, _ball_l2)


def l1(epsilon, *, order: Order = 'auto', top_k: int = 1):
  """{||delta||_1 <= epsilon}: steepest ascent on the largest gradient entries.

  A step of length a moves the entries in the order of |g_j|, by sign(g_j) min(a / top_k, r_j)
  each, until the movements add up to a; r_j is how far entry j is from its end of the box. Without
  a box these are sign(g) a / top_k on the `top_k` largest; top_k = 1, the steepest direction
  proper, then changes a single entry, and within the box is the exact maximum of the linearised
  objective over steps of l1 norm a. The random start is epsilon v / (||v||_1 + e) with v signed
  standard exponentials and e a standard exponential: uniform in the ball. The projection is
  Euclidean: onto ball and box together, or onto the ball (Duchi et al. 2008).

  Args:
    epsilon: radius in pixel units, scalar or [batch].
    order: see above; 'auto' is 'joint'.
    top_k: the fewest entries that a step changes.

  Raises:
    ValueError: top_k < 1.

  Reference:
    Croce & Hein, Mind the box: l1-APGD for sparse adversarial attacks on image classifiers, 2021.
  """
  if top_k < 1:
    raise ValueError(f'top_k must be at least 1, got {top_k}')
  order = 'joint' if order == 'auto' else order
  return _make('l1', epsilon, order, _start_l1, _step_l1(top_k, order == 'joint'), _ball_l1)


def meant_order(norm):
  """What order='auto' is for a norm."""
  return 'joint' if norm == 'l1' else 'ball_then_box'


def _make(norm, epsilon, order, *functions):
  order = meant_order(norm) if order == 'auto' else order
  return ThreatModel(inputs.radius(epsilon), norm, order, *functions)


NORMS = {'linf': linf, 'l2': l2, 'l1': l1}


def make(norm, epsilon, *, order: Order = 'auto', l1_top_k: int = 1):
  """The threat model of a norm by its name; l1_top_k is the top_k of l1, and else not used.

  Raises:
    ValueError: an unknown norm or order, or l1_top_k < 1 for l1.
  """
  if norm not in NORMS:
    raise ValueError(f'norm must be one of {", ".join(NORMS)}, got {norm!r}')
  if order not in get_args(Order):
    raise ValueError(f'order must be one of {", ".join(get_args(Order))}, got {order!r}')
  return NORMS[norm](epsilon, order=order, **({'top_k': l1_top_k} if norm == 'l1' else {}))


@flax.struct.dataclass
class Tangent:
  """{x + B a: ||a||_2 <= epsilon}: perturbations within the tangent space of the data at x.

  It has the functions of a `ThreatModel`. There is no box: clipping would leave span(B).

  Attributes:
    epsilon: radius in pixel units, scalar or [batch].
    basis: [batch, d, k] float32, for each image k orthonormal directions (columns) in its d
      flattened pixels and channels.
  """

  epsilon: Array
  basis: Array

  def random(self, key, images):
    """A random point for each image, [batch, ...]: uniform in the ball within span(B)."""
    rows = _rows(images)
    like = jnp.zeros((len(rows), self.basis.shape[-1]), rows.dtype)
    own = _start_l2(keys.per_example(key, len(rows)), like, column(self.epsilon, rows))
    return (rows + self._pixels(own)).reshape(images.shape)

  def steepest(self, key, gradient):
    """P g / ||P g||_2 with P the projection onto span(B), for each example: [batch, ...].

    Where P g is zero, a random unit direction within span(B), drawn from `key`.
    """
    own = self._coordinates(_rows(gradient))
    unit = _step_l2(keys.per_example(key, len(own)), own, 1., None)
    return self._pixels(unit).reshape(gradient.shape)

  def ascend(self, key, images, gradient, length):
    """`images` moved by `length` (scalar or [batch]) along `steepest`; not yet projected."""
    return images + column(length, images) * self.steepest(key, gradient)

  def project(self, adversarial, images):
    """The closest point of the set around `images`: onto span(B), then to norm epsilon at most."""
    center = _rows(images)
    own = _ball_l2(self._coordinates(_rows(adversarial) - center), column(self.epsilon, center),
                   None)
    return (center + self._pixels(own)).reshape(images.shape)

  def _coordinates(self, rows):
    return jnp.einsum('bdk,bd->bk', self.basis, rows)

  def _pixels(self, own):
    return jnp.einsum('bdk,bk->bd', self.basis, own)


def tangent(epsilon, basis):
  """Perturbations of l2 norm <= epsilon in the span of an orthonormal basis of each image.

  Args:
    epsilon: radius in pixel units, scalar or [batch].
    basis: [batch, d, k], orthonormal columns; see `Tangent`.

  Raises:
    ValueError: a basis of another shape.

  Reference:
    Shaham et al., Understanding adversarial training, 2015, equations 12 and 13.
  """
  if jnp.ndim(basis) != 3:
    raise ValueError(f'basis must be [batch, pixels, directions], got shape {jnp.shape(basis)}')
  return Tangent(inputs.radius(epsilon), basis)


def norms(perturbation, norm):
  """||perturbation|| of each example, [batch]; `norm` is 'linf', 'l2' or 'l1'."""
  rows = _rows(perturbation)
  if norm == 'linf':
    return jnp.max(jnp.abs(rows), axis=-1)
  return jnp.linalg.norm(rows, ord={'l1': 1, 'l2': 2}[norm], axis=-1)


def all_finite(rows):
  """[batch] bool: whether all entries of an example [batch, ...] are finite."""
  return jnp.isfinite(_rows(rows)).all(axis=-1)


def column(value, images):
  """A scalar as it is; [batch] with trailing axes, to go with images [batch, ...]."""
  value = jnp.asarray(value)
  return value if value.ndim == 0 else value.reshape((-1,) + (1,) * (images.ndim - 1))


def _rows(images):
  return images.reshape(len(images), -1)


def _room(rows, direction):
  """How far each entry of `rows` may go in its `direction` within the box; 0 where that is 0."""
  room = jnp.where(direction > 0, 1 - rows, jnp.where(direction < 0, rows, 0))
  return jnp.maximum(room, 0)


def _unit(rows):
  """rows / ||rows||_2 and where that is defined.

  Dividing by the largest entry first keeps squares of tiny gradients from underflowing. XLA may
  multiply by its reciprocal instead, which of more than 2^126 would be flushed to zero.
  """
  largest = jnp.max(jnp.abs(rows), axis=-1, keepdims=True)
  defined = largest != 0  # NaN stays NaN.
  rows = rows / jnp.where(defined, jnp.minimum(largest, 2.**100), 1)
  norm = jnp.linalg.norm(rows, axis=-1, keepdims=True)
  return rows / jnp.where(defined, norm, 1), defined


def _random_units(key, rows):
  return _unit(jax.vmap(lambda k: keys.standard_normal(k, rows.shape[1:]))(key))[0]


def _start_linf(key, rows, epsilon):
  draws = jax.vmap(lambda k: jax.random.uniform(k, rows.shape[1:], rows.dtype, -1, 1))(key)
  return epsilon * draws


def _start_l2(key, rows, epsilon):
  direction_key, radius_key = keys.fold_in(key, 0), keys.fold_in(key, 1)
  radius = jax.vmap(lambda k: jax.random.uniform(k, (1,), rows.dtype))(radius_key)
  return epsilon * radius ** (1 / rows.shape[1]) * _random_units(direction_key, rows)


def _start_l1(key, rows, epsilon):
  draw_key, extra_key = keys.fold_in(key, 0), keys.fold_in(key, 1)
  draws = jax.vmap(lambda k: jax.random.laplace(k, rows.shape[1:], rows.dtype))(draw_key)
  extra = jax.vmap(lambda k: jax.random.exponential(k, (1,), rows.dtype))(extra_key)
  return epsilon * draws / (jnp.sum(jnp.abs(draws), axis=-1, keepdims=True) + extra)


def _step_linf(key, gradient, length, room):
  del key, room
  return length * jnp.sign(gradient)


def _step_l2(key, gradient, length, room):
  del room
  unit, defined = _unit(gradient)
  # A random direction costs as many normals as there are pixels: draw only where needed.
  return length * jax.lax.cond(
      jnp.all(defined),
      lambda: unit,
      lambda: jnp.where(defined, unit, _random_units(key, gradient)))


@functools.lru_cache
def _step_l1(top_k, beyond):
  """The step for `top_k`; cached, because a new function would be compiled anew.

  With `beyond`, entries whose gradient is as large go beyond the box by what they cannot move
  within it. The joint projection brings them back to its end, and takes what is too much for the
  ball from others: otherwise each step would take from what the steps before had found.
  """

  def step(key, gradient, length, room):
    del key
    length = jnp.broadcast_to(length, (len(gradient), 1))
    share = length / min(top_k, gradient.shape[1])
    most = jnp.where(gradient == 0, 0, share if room is None else jnp.minimum(room, share))
    # Nonnegative floats are ordered as their bits are: entries above `threshold` go all their way.
    size = jax.lax.bitcast_convert_type(jnp.abs(gradient), jnp.int32)
    moved_above = lambda threshold: jnp.sum(jnp.where(size > threshold, most, 0), -1,
                                            keepdims=True)

    def halve(_, interval):
      low, high = interval
      middle = low + (high - low) // 2
      fits = moved_above(middle) <= length
      return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    interval = jnp.full_like(size[:, :1], -1), jnp.max(size, -1, keepdims=True)
    threshold = jax.lax.fori_loop(0, 31, halve, interval)[1]
    rest = length - moved_above(threshold)
    # Of entries at the threshold, the first ones share what is left.
    equal = jnp.where(size == threshold, most, 0)
    rest = jnp.where(rest > _ROUNDING * length, rest, 0) - (jnp.cumsum(equal, -1) - equal)
    return jnp.sign(gradient) * jnp.where(size > threshold, share if beyond else most,
                                          jnp.clip(rest, 0, equal))

  return step


def _ball_linf(rows, epsilon, room):
  del room
  return jnp.clip(rows, -epsilon, epsilon)


def _ball_l2(rows, epsilon, room):
  """rows scaled to the norm epsilon at most; with `room`, to where that is so after clipping."""
  norm = jnp.linalg.norm(rows, axis=-1, keepdims=True)
  scale = jnp.where(norm > epsilon, epsilon / jnp.where(norm > 0, norm, 1), 1)
  if room is None:
    return rows * scale
  size = jnp.abs(rows)
  clipped = lambda scale: jnp.minimum(scale * size, room)
  return jnp.sign(rows) * clipped(_largest(
      lambda scale: jnp.linalg.norm(clipped(scale), axis=-1, keepdims=True), epsilon,
      scale, jnp.ones_like(scale)))


def _ball_l1(rows, epsilon, room):
  """Soft thresholding, and clipping to `room`, at the level that brings the l1 norm to epsilon."""
  size = jnp.abs(rows)
  clipped = lambda level: jnp.clip(size - level, 0, jnp.inf if room is None else room)
  level = -_largest(lambda level: jnp.sum(clipped(-level), axis=-1, keepdims=True), epsilon,
                    -jnp.max(size, axis=-1, keepdims=True), jnp.zeros_like(size[:, :1]))
  return jnp.sign(rows) * clipped(level)


def _largest(rising, most, low, high):
  """The largest value in [low, high] with rising(value) <= most, or low: [batch, 1] each."""

  def halve(_, interval):
    low, high = interval
    middle = (low + high) / 2
    fits = rising(middle) <= most
    return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

  below, above = jax.lax.fori_loop(0, _HALVINGS, halve, (low, high))
  # Between so near values it is a straight line.
  start, end = rising(below), rising(above)
  value = below + (above - below) * jnp.where(end > start, (most - start) / (end - start), 0)
  return jnp.where(rising(high) <= most, high, jnp.clip(value, below, above))
