"""Backward linear bounds: <c, f(x)> >= <a, x> + b, and what that is at least in a ball."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from robust_jax.bounds import rules
from robust_jax.bounds.rules import ROUNDING, Affine

# A projection onto a ball may end so much outside of it.
_OUTSIDE = 2.0**-19
# Steps in which the multiplier of an l2 ball within a box is found; every one of them is sound.
_MULTIPLIER_STEPS = 12


def prepare(steps, intervals, known, shares=None):
  """What `lower` needs of steps whose inputs have intervals.

  Args:
    steps: of a `propagate.Graph`.
    intervals: {slot: Interval}.
    known: {slot: ...} from an earlier call, which is completed and returned.
    shares: {slot: share} of steps whose lines leave a choice (see `rules.Nonlinear`).

  Returns:
    {slot: Lines of the step that it comes from}; of an affine step only their shifts, which are
    what it adds, with its rounding, or None if it adds nothing and does not round.
  """
  for step in steps:
    if step.output in known:
      continue
    inputs = [intervals[x] for x in step.inputs]
    if isinstance(step.rule, Affine):
      known[step.output] = rules.affine_lines(step.rule, inputs)
    else:
      known[step.output] = lines(step.rule, inputs, (shares or {}).get(step.output))
  return known


def lines(rule, inputs, share=None):
  """Lines of a Nonlinear function of intervals, apart by the rounding of products with them."""
  x = rules.once(rules.stacked(rule, inputs))
  found = rule.lines(x) if share is None else rule.lines(x, share)
  steepest = jnp.maximum(jnp.abs(found.lower_slope), jnp.abs(found.upper_slope))
  # Coefficients of an input that is smaller, and repeated, are sums.
  fan = max(found.lower_shift.size // max(x.lower.size, 1) for x in inputs)
  off = (len(steepest) + fan + 8) * ROUNDING * jnp.sum(
      steepest * jnp.where(steepest == 0, 0, x.size), axis=0)
  return found._replace(lower_shift=found.lower_shift - off, upper_shift=found.upper_shift + off)


def lower(graph, intervals, known, slot, seed, *, at_image=None, forms=None):
  """A lower bound of <seed, slot>: the functions that it is made of, replaced by lines, last first.

  Args:
    graph: of `propagate.trace`.
    intervals: {slot: Interval}, of slot and what it is made of.
    known: from `prepare`.
    slot: of the graph.
    seed: of its shape.
    at_image: a -> arrays, of which the sum of all entries is at most <a, image>; None: lines end
      at the last nonlinear functions, of which the intervals are taken.
    forms: {slot: coefficients}, of `forward`: lines end at the last nonlinear functions, and those
      of the image are taken for them.

  Returns:
    A scalar; -inf where there is none.
  """
  coefficients, terms = {slot: seed}, []
  for step in reversed(graph.steps):
    a = coefficients.pop(step.output, None)
    if a is None:
      continue
    found, through = known[step.output], step.inputs
    inputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in step.inputs]
    if isinstance(step.rule, Affine):
      # Of an affine function, the transpose of its derivative.
      pull = jax.vjp(step.rule.apply, *(jnp.zeros(x.shape, x.dtype) for x in inputs))[1]
      if found is not None:
        terms.append(least(a, found.lower_shift, found.upper_shift))
    elif forms:
      row, shift = _below(a, forms[step.output])
      terms.append(shift)
      through, pull = [graph.input], lambda _, row=row: [row.reshape(graph.input.shape)]
    elif at_image is None:
      terms.append(least(a, *intervals[step.output]))
      continue
    else:
      pull = jax.linear_transpose(step.rule.stack, *inputs)
      terms.append(least(a, found.lower_shift, found.upper_shift))
      a = jnp.where(a > 0, a * found.lower_slope, a * found.upper_slope)
    parts = pull(a)
    if isinstance(step.rule, Affine) and step.rule.fan and step.rule.terms <= 1:
      parts = rules.once(parts)  # Sums that XLA may compute in every kernel that uses them.
    for x, part in zip(through, parts):
      if x in coefficients:
        part = rules.once(part + coefficients[x])
        terms.append(-ROUNDING * times(jnp.abs(part), intervals[x].size))
      coefficients[x] = part
  a = coefficients.pop(graph.input, None)
  if a is not None:
    terms += at_image(a) if at_image else [least(a, *intervals[graph.input])]
  return total(terms)


def by_chunk(f, entries, chunk):
  """f of each of the entries [n, ...], of `chunk` of them at once."""
  if len(entries) <= chunk:
    return jax.vmap(f)(entries)
  return lax.map(f, entries, batch_size=chunk)


def total(terms):
  """At most the sum of all entries of these arrays, whatever their rounding; -inf for NaN."""
  terms = jnp.concatenate([term.reshape(-1) for term in terms])
  found = _sum(terms) - _rounding(terms) * _sum(jnp.abs(terms))
  return jnp.where(jnp.isnan(found), -jnp.inf, found)


def _below(a, coefficients):
  """(b, c): <b, pixels> + c is at most <a, v>, of v between lines of these coefficients."""
  products = least(a, *coefficients).reshape(len(coefficients.lower), -1)
  row = products.sum(1) - (a.size + 8) * ROUNDING * jnp.abs(products).sum(1)
  row = jnp.where(jnp.isnan(row), -jnp.inf, row)
  return row[:-1], row[-1]


def least(a, low, high):
  """The least a x, elementwise, of x in [low, high]."""
  return times(a, jnp.where(a > 0, low, high))


def times(a, b):
  """a b; 0 times anything is 0."""
  return a * jnp.where(a == 0, 0, b)


def _parts(x):
  """Length of each of three nested sums."""
  return math.ceil(x.size ** (1 / 3) + 1e-9)


def _rounding(x):
  """Of `_sum` and what it is of, relative to the sum of absolute values."""
  return (3 * _parts(x) + 8) * ROUNDING


def _sum(x):
  """The sum of all entries in three nested ones, whose rounding errors are fewer."""
  size = _parts(x)
  x = jnp.pad(x.reshape(-1), (0, size**3 - x.size)).reshape(size, size, size)
  # XLA would make one sum of them.
  return lax.optimization_barrier(lax.optimization_barrier(x.sum(-1)).sum(-1)).sum(-1)


def at_ball(image, box, epsilon, norm):
  """`lower`'s at_image, of x in the box with a norm of x - image of at most epsilon.

  The box's own minimum for linf. For l2 and l1, by duality, <a, image> less the minimum over a
  multiplier of an upper bound of what the ball adds, which is exact at the best multiplier.
  """
  if norm == 'linf':
    return lambda a: [least(a, *box)]
  epsilon = epsilon * (1 + _OUTSIDE)
  gain = {'l2': _gain_l2, 'l1': _gain_l1}[norm]

  def at_image(a):
    # How far each pixel may go in its direction.
    room = jnp.where(a > 0, image - box.lower, box.upper - image)
    size, room = jnp.abs(a).reshape(-1), jnp.maximum(room, 0).reshape(-1)
    most = jnp.minimum(_sum(size * room), gain(size, room, epsilon))
    return [a * image, -most * (1 + _rounding(a))]

  return at_image


def _gain_l1(size, room, epsilon):
  """max <size, t> over 0 <= t <= room, sum t <= epsilon: the level's dual, the level by sorting."""
  order = jnp.argsort(-size)
  place = jnp.sum(jnp.cumsum(room[order]) < epsilon)
  level = rules.once(
      jnp.where(place < len(size), size[order[jnp.minimum(place, len(size) - 1)]], 0))
  return epsilon * level + _sum(room * jnp.maximum(size - level, 0))


def _gain_l2(size, room, epsilon):
  """max <size, t> over 0 <= t <= room, norm of t <= epsilon.

  By the dual of a step s: t = min(s size, room) and sum(size t - t^2 / 2s) + epsilon^2 / 2s. The
  step grows as pixels come to the end of their room.
  """
  square = jnp.sum(jnp.square(size))
  moves = (square > 0) & (epsilon > 0)
  size = jnp.where(square > 0, size, 1)

  def grow(_, step):
    ends = step * size >= room
    left = jnp.square(epsilon) - jnp.sum(jnp.where(ends, jnp.square(room), 0))
    rest = jnp.sum(jnp.where(ends, 0, jnp.square(size)))
    larger = jnp.sqrt(jnp.maximum(left, 0) / jnp.where(rest > 0, rest, 1))
    return jnp.where(rest > 0, jnp.maximum(step, larger), step)

  step = epsilon / jnp.sqrt(jnp.sum(jnp.square(size)))
  step = lax.fori_loop(0, _MULTIPLIER_STEPS, grow, lax.stop_gradient(step))
  step = jnp.where(moves, lax.stop_gradient(step), 1)
  t = jnp.minimum(step * size, room)
  dual = _sum(t * (size - t / (2 * step))) + jnp.square(epsilon) / (2 * step)
  return jnp.where(moves, dual, jnp.where(epsilon > 0, jnp.inf, 0))
