"""Perturbation sets: a random start, the steepest ascent direction and the projection of each.

A threat model is a pytree, so that epsilon is traced: a scalar or one value per example.
Adversarial images stay in the ball of radius epsilon around the image and in the box [0, 1], up
to float32 rounding. Two orders of projection are in use, and they give different points:

- 'ball_then_box' (Madry et al. 2018; the Consistency authors' SmoothAdv),
- 'box_then_ball' (Salman et al. 2019).

Both end in the intersection: the image itself is in the box, each ball projection moves every
coordinate towards it, and clipping to the box never makes a coordinate's perturbation longer.
'ball_only' leaves the box out: the set is the ball (Shaham et al. 2015).
"""

import functools
from collections.abc import Callable
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp

from robust_jax import inputs, keys
from robust_jax.types import Array

Norm = Literal['linf', 'l2', 'l1']
Order = Literal['ball_then_box', 'box_then_ball', 'ball_only']


@flax.struct.dataclass
class ThreatModel:
  """A perturbation set P(x) = {x + delta in [0, 1]: ||delta|| <= epsilon}.

  Attributes:
    epsilon: radius in pixel units, scalar or [batch].
    norm: 'linf', 'l2' or 'l1'.
    order: which projection comes last, or that there is no box.
    start_fn: (keys [batch], flat images, epsilon) -> flat perturbations in the ball; epsilon is a
      scalar or [batch, 1].
    steepest_fn: (keys [batch], flat gradients) -> flat steps of norm one.
    ball_fn: (flat perturbations, epsilon) -> the closest perturbations in the ball.
  """

  epsilon: Array
  norm: str = flax.struct.field(pytree_node=False)
  order: Order = flax.struct.field(pytree_node=False)
  start_fn: Callable = flax.struct.field(pytree_node=False)
  steepest_fn: Callable = flax.struct.field(pytree_node=False)
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
    """argmax <gradient, v> over ||v|| <= 1 for each example: [batch, ...].

    Finite for every finite gradient. At a zero gradient: zero for linf and l1, for l2 a random
    unit direction, drawn from `key`.
    """
    rows = _rows(gradient)
    return self.steepest_fn(keys.per_example(key, len(rows)), rows).reshape(gradient.shape)

  def project(self, adversarial, images):
    """The projection of `adversarial` [batch, ...] onto the set around `images`."""
    center = _rows(images)
    point = _rows(adversarial)
    epsilon = column(self.epsilon, center)
    if self.order == 'box_then_ball':
      point = jnp.clip(point, 0, 1)
    point = center + self.ball_fn(point - center, epsilon)
    if self.order == 'ball_then_box':
      point = jnp.clip(point, 0, 1)
    return point.reshape(images.shape)


def linf(epsilon, *, order: Order = 'ball_then_box'):
  """{||delta||_inf <= epsilon}: steepest ascent sign(g), uniform random start.

  Args:
    epsilon: radius in pixel units, scalar or [batch].
    order: 'ball_then_box' or 'box_then_ball' (the same point for this norm), or 'ball_only'.
  """
  return ThreatModel(inputs.radius(epsilon), 'linf', order, _start_linf, _steepest_linf, _ball_linf)


def l2(epsilon, *, order: Order = 'ball_then_box'):
  """{||delta||_2 <= epsilon}: steepest ascent g / ||g||_2, random start uniform in the ball.

  Args:
    epsilon: radius in pixel units, scalar or [batch].
    order: 'ball_then_box', 'box_then_ball' or 'ball_only'.
  """
  return ThreatModel(inputs.radius(epsilon), 'l2', order, _start_l2, _steepest_l2, _ball_l2)


def l1(epsilon, *, order: Order = 'ball_then_box', top_k: int = 1):
  """{||delta||_1 <= epsilon}: steepest ascent on the `top_k` largest gradient entries.

  The step is sign(g) / top_k on those entries and zero elsewhere; top_k = 1, the steepest
  direction proper, changes a single pixel. The random start is epsilon v / (||v||_1 + e) with v
  signed standard exponentials and e a standard exponential: uniform in the ball. The projection
  onto the ball is Euclidean (Duchi et al. 2008).

  Args:
    epsilon: radius in pixel units, scalar or [batch].
    order: 'ball_then_box', 'box_then_ball' or 'ball_only'.
    top_k: number of entries that a step changes.

  Raises:
    ValueError: top_k < 1.
  """
  if top_k < 1:
    raise ValueError(f'top_k must be at least 1, got {top_k}')
  return ThreatModel(inputs.radius(epsilon), 'l1', order, _start_l1, _steepest_l1(top_k), _ball_l1)


NORMS = {'linf': linf, 'l2': l2, 'l1': l1}


def make(norm, epsilon, *, order: Order = 'ball_then_box', l1_top_k: int = 1):
  """The threat model of a norm by its name; l1_top_k is the top_k of l1, and else not used.

  Raises:
    ValueError: an unknown norm, or l1_top_k < 1 for l1.
  """
  if norm not in NORMS:
    raise ValueError(f'norm must be one of {", ".join(NORMS)}, got {norm!r}')
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
    unit = _steepest_l2(keys.per_example(key, len(own)), own)
    return self._pixels(unit).reshape(gradient.shape)

  def project(self, adversarial, images):
    """The closest point of the set around `images`: onto span(B), then to norm epsilon at most."""
    center = _rows(images)
    own = _ball_l2(self._coordinates(_rows(adversarial) - center), column(self.epsilon, center))
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


def column(value, images):
  """A scalar as it is; [batch] with trailing axes, to go with images [batch, ...]."""
  value = jnp.asarray(value)
  return value if value.ndim == 0 else value.reshape((-1,) + (1,) * (images.ndim - 1))


def _rows(images):
  return images.reshape(len(images), -1)


def _unit(rows):
  """rows / ||rows||_2 and where that is defined.

  Dividing by the largest entry first keeps squares of tiny gradients from underflowing.
  """
  largest = jnp.max(jnp.abs(rows), axis=-1, keepdims=True)
  defined = largest > 0
  rows = rows / jnp.where(defined, largest, 1)
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


def _steepest_linf(key, gradient):
  del key
  return jnp.sign(gradient)


def _steepest_l2(key, gradient):
  unit, defined = _unit(gradient)
  # A random direction costs as many normals as there are pixels: draw only where needed.
  return jax.lax.cond(
      jnp.all(defined),
      lambda: unit,
      lambda: jnp.where(defined, unit, _random_units(key, gradient)))


@functools.lru_cache
def _steepest_l1(top_k):
  """The step for `top_k`; cached, because a new function would be compiled anew."""

  def steepest(key, gradient):
    del key
    _, top = jax.lax.top_k(jnp.abs(gradient), min(top_k, gradient.shape[1]))
    values = jnp.take_along_axis(jnp.sign(gradient), top, axis=-1) / top.shape[1]
    return jax.vmap(lambda index, value: jnp.zeros_like(gradient[0]).at[index].set(value))(
        top, values)

  return steepest


def _ball_linf(rows, epsilon):
  return jnp.clip(rows, -epsilon, epsilon)


def _ball_l2(rows, epsilon):
  norm = jnp.linalg.norm(rows, axis=-1, keepdims=True)
  return rows * jnp.where(norm > epsilon, epsilon / jnp.where(norm > 0, norm, 1), 1)


def _ball_l1(rows, epsilon):
  """Soft thresholding at the level that brings the l1 norm down to epsilon."""
  size = jnp.abs(rows)
  ordered = -jnp.sort(-size, axis=-1)
  ranks = jnp.arange(1, rows.shape[1] + 1, dtype=rows.dtype)
  levels = (jnp.cumsum(ordered, axis=-1) - epsilon) / ranks
  # The largest rank whose entry is above its level; rank 1 always is unless epsilon is 0.
  active = jnp.maximum(jnp.sum(ordered > levels, axis=-1, keepdims=True), 1)
  level = jnp.take_along_axis(levels, active - 1, axis=-1)
  inside = jnp.sum(size, axis=-1, keepdims=True) <= epsilon
  return jnp.where(inside, rows, jnp.sign(rows) * jnp.maximum(size - level, 0))
