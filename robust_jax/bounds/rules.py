"""What is known of each primitive: its interval, and straight lines below and above it.

`RULES` maps the names of JAX's primitives to functions (inputs, params, primitive, emit) -> output.
An input or output is a `Slot`, a value that depends on the image, or an array, which does not. A
rule hands what it makes of slots to `emit`, as an `Affine` or a `Nonlinear` function of them, and
returns the slot that it gets; of a primitive or a case without a rule, `Uncovered` is raised.

Rounding: every interval holds what float32 sums in any order give, of any point of the inputs'
intervals, and the exact value. A sum of n products is off by at most n u sum |w x|, u = 2^-24
(Higham, Accuracy and Stability of Numerical Algorithms, 2002, 3.1), in the network and again
in the bound: hence `ROUNDING` = 2 u, and some terms more for what else is rounded. Elementary
functions are taken to be right to `_CURVE_ERROR`. This is of float32 products: those of bounds ask
for the highest precision, but a network that is evaluated in TF32 or bfloat16 is another function.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robust_jax.types import Array

ROUNDING = 2.0**-23
# Roundings of a step beside those of its sums.
_MORE = 8
# Relative to 1 + abs(f(x)); XLA's float32 tanh, exp, log and their like are within a few ulps.
_CURVE_ERROR = 1e-6
# Chords are drawn between points further apart: of nearer ones, they are rounding errors.
_NARROW = 1e-3
# Parts of an interval in which a smooth curve is compared with a line.
_PARTS = 16


class Uncovered(Exception):
  """There is no bound for such inputs of a primitive."""


class Slot(NamedTuple):
  """A value that depends on the image: its number, shape and dtype."""

  number: int
  shape: tuple[int, ...]
  dtype: np.dtype


class Comparison(NamedTuple):
  """slot > threshold, or its contrary: a bool that only `select_n` takes."""

  slot: Slot
  threshold: Array
  above: bool


class Interval(NamedTuple):
  """Elementwise bounds of an array."""

  lower: Array
  upper: Array

  @property
  def size(self):
    """The largest absolute value."""
    return jnp.maximum(jnp.abs(self.lower), jnp.abs(self.upper))


class Affine(NamedTuple):
  """An affine function of slots.

  Attributes:
    apply: the function itself, of one array a slot.
    spread: the linear function that has the absolute values of its coefficients.
    terms: of a sum that it computes.
    fan: of a sum that its transpose computes.
    rising: whether no coefficient is negative.
    shifts: whether it is not 0 of zeros, where it has no terms.
  """

  apply: Callable
  spread: Callable
  terms: int = 0
  fan: int = 0
  rising: bool = False
  shifts: bool = False


class Lines(NamedTuple):
  """sum_k lower_slope_k x_k + lower_shift <= f(x) <= sum_k upper_slope_k x_k + upper_shift.

  Slopes are [k, *shape of f(x)], x as `Nonlinear.stack` has it.
  """

  lower_slope: Array
  lower_shift: Array
  upper_slope: Array
  upper_shift: Array


class Pieces(NamedTuple):
  """A piecewise linear function: sign f(x) = max_p sum_k slope_pk x_k + shift_p, to within `off`.

  Attributes:
    slope: [p, k, *shape of f(x)].
    shift: [p, *shape]; -inf where there is no such piece.
    sign: [*shape], 1 where f is the largest of them, and -1 where it is minus that.
    off: [*shape], of the rounding of f, and of a jump between its pieces.
  """

  slope: Array
  shift: Array
  sign: Array
  off: Array


class Nonlinear(NamedTuple):
  """Another function of slots, elementwise in `stack` of them.

  Attributes:
    stack: the linear function of one array a slot that has what f(x) depends on: [k, *shape].
    hull: Interval of the stack -> Interval of f(x).
    lines: Interval of the stack -> Lines; with `share`, the slope that may be chosen lies there
      between its two limits.
    share: Interval of the stack -> the usual choice of that, in [0, 1]; None of a function whose
      lines leave no choice.
    parallel: Interval of the stack -> the choice by which both lines have one slope; likewise.
    at: a of max(x, a); None of another function.
    pieces: Interval of the stack -> Pieces; None of a function that is not piecewise linear.
  """

  stack: Callable
  hull: Callable
  lines: Callable
  share: Callable | None = None
  parallel: Callable | None = None
  at: Array | float | None = None
  pieces: Callable | None = None


@jax.custom_jvp
def once(tree):
  """The pytree's arrays, computed once: with the same bits wherever they are used.

  XLA computes an elementwise value anew in every kernel that uses it, where a product and a sum may
  be rounded together or apart. Of two lines that are equally good one kernel might take the slope
  of the one, and another the shift of the other: no bound at all. It does not see through a loop
  whose end is not known.
  """
  leaves, structure = jax.tree.flatten(tree)
  # One pass, and of NaN two, that change nothing.
  last = jnp.where(jnp.isnan(jnp.ravel(leaves[0])[:1]).any(), 2, 1)

  def same(carry):
    number, leaves = carry
    return number + 1, [jnp.where(number > last, jnp.zeros_like(x), x) for x in leaves]

  found = lax.while_loop(lambda carry: carry[0] < last, same, (jnp.zeros_like(last), leaves))[1]
  return jax.tree.unflatten(structure, found)


@once.defjvp
def _once_jvp(primals, tangents):
  return once(*primals), tangents[0]


def interval(lower, upper):
  """An Interval; a NaN, as of inf - inf, says nothing."""
  return Interval(jnp.where(jnp.isnan(lower), -jnp.inf, lower),
                  jnp.where(jnp.isnan(upper), jnp.inf, upper))


def affine_interval(rule, intervals, rounded=True):
  """Interval of an Affine function of intervals; if `rounded`, outward by its rounding."""
  if not rounded:
    if rule.rising:
      return Interval(rule.apply(*(x.lower for x in intervals)),
                      rule.apply(*(x.upper for x in intervals)))
    middle = rule.apply(*((x.lower + x.upper) / 2 for x in intervals))
    radius = rule.spread(*((x.upper - x.lower) / 2 for x in intervals))
    return Interval(middle - radius, middle + radius)
  unit = (rule.terms + _MORE) * ROUNDING if rule.terms else 0
  sizes = [x.size for x in intervals]
  if rule.rising:
    lower = rule.apply(*(x.lower for x in intervals))
    upper = rule.apply(*(x.upper for x in intervals))
    if not rule.terms:
      return interval(lower, upper)
    off = unit * (rule.spread(*sizes) + jnp.maximum(jnp.abs(lower), jnp.abs(upper)))
    return interval(lower - off, upper + off)
  middle = rule.apply(*((x.lower + x.upper) / 2 for x in intervals))
  radius = rule.spread(*((x.upper - x.lower) / 2 + unit * size
                         for x, size in zip(intervals, sizes)))
  radius = radius + unit * (jnp.abs(radius) + jnp.abs(middle))
  return interval(middle - radius, middle + radius)


def affine_lines(rule, intervals):
  """Lines, without slopes, of an Affine function: what it adds, and what it is off.

  That is the rounding of its own sums and of those that trace coefficients back through it. None
  of a function that adds nothing and does not round.
  """
  if not (rule.terms or rule.fan or rule.shifts):
    return None
  shift = rule.apply(*(jnp.zeros_like(x.lower) for x in intervals))
  if not (rule.terms or rule.fan):
    return Lines(None, shift, None, shift)
  off = affine_off(rule, intervals)
  return Lines(None, shift - off, None, shift + off)


def affine_off(rule, intervals):
  """What an Affine function of intervals, and coefficients that come back through it, are off."""
  middle = rule.apply(*((x.lower + x.upper) / 2 for x in intervals))
  return (rule.terms + rule.fan + _MORE) * ROUNDING * (
      rule.spread(*(x.size for x in intervals)) + jnp.abs(middle))


def stacked(rule, intervals):
  """Interval of what a Nonlinear function depends on."""
  return Interval(rule.stack(*(x.lower for x in intervals)),
                  rule.stack(*(x.upper for x in intervals)))


# Affine primitives.


def _filled(primitive, params, inputs):
  """The primitive as a function of its slots alone."""
  def apply(*arrays):
    arrays = iter(arrays)
    return primitive.bind(*(next(arrays) if isinstance(x, Slot) else x for x in inputs), **params)
  return apply


def _slots(inputs):
  return [x for x in inputs if isinstance(x, Slot)]


def _structural(inputs, params, primitive, emit):
  """What moves entries, or leaves them out."""
  apply = _filled(primitive, params, inputs)
  shifts = any(not isinstance(x, Slot) and jnp.issubdtype(x.dtype, jnp.floating) for x in inputs)
  return emit(Affine(apply, apply, rising=True, shifts=shifts), _slots(inputs))


def _fanned(inputs, params, primitive, emit):
  """What repeats entries."""
  x, = _slots(inputs)
  apply = _filled(primitive, params, inputs)
  out = jax.eval_shape(apply, _like(x))
  return emit(Affine(apply, apply, fan=_ratio(out, x), rising=True), [x])


def _like(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _ratio(out, x):
  return math.prod(out.shape) // max(math.prod(x.shape), 1)


def _fan(shape, slots):
  """Of an elementwise function of this shape that may repeat smaller slots."""
  return max(math.prod(shape) // max(math.prod(x.shape), 1) for x in slots) - 1


def _shape(*inputs):
  return np.broadcast_shapes(*(np.shape(x) if not isinstance(x, Slot) else x.shape
                               for x in inputs))


def _sum_of_two(rising):
  def rule(inputs, params, primitive, emit):
    shape, slots = _shape(*inputs), _slots(inputs)
    spread = lambda *radii: jnp.broadcast_to(sum(radii), shape)
    return emit(Affine(_filled(primitive, params, inputs), spread, 1, _fan(shape, slots), rising),
                slots)
  return rule


def _neg(inputs, params, primitive, emit):
  return emit(Affine(_filled(primitive, params, inputs), lambda radius: radius, 1), inputs)


def _mul(inputs, params, primitive, emit):
  slots = _slots(inputs)
  if len(slots) == 2:
    if slots[0] == slots[1]:
      return emit(curve(jnp.square, 0., 'convex'), slots[:1])
    shape = _shape(*slots)
    return emit(Nonlinear(_stack(shape), _product_hull, _product_lines), slots)
  factor, = (jnp.abs(x) for x in inputs if not isinstance(x, Slot))
  return emit(Affine(_filled(primitive, params, inputs), lambda radius: radius * factor, 1,
                     _fan(_shape(*inputs), slots)), slots)


def _div(inputs, params, primitive, emit):
  x, divisor = inputs
  if isinstance(divisor, Slot):
    raise Uncovered('a divisor that depends on the image')
  return emit(Affine(_filled(primitive, params, inputs), lambda radius: radius / jnp.abs(divisor),
                     1, _fan(_shape(*inputs), [x])), [x])


def _product(sizes):
  """A bilinear primitive; sizes(inputs, constant side, params) -> (terms, fan)."""
  def rule(inputs, params, primitive, emit):
    slots = _slots(inputs)
    if len(slots) == 2:
      raise Uncovered('two factors that depend on the image')
    side = int(isinstance(inputs[0], Slot))
    terms, fan = sizes(inputs, side, params)
    if 'precision' in params:
      given = params['precision']
      if given not in (None, lax.DotAlgorithmPreset.F32_F32_F32) and not isinstance(given, tuple):
        raise Uncovered(f'the algorithm {given}')
      params = params | {'precision': (lax.Precision.HIGHEST,) * 2}
    absolute = [x if isinstance(x, Slot) else jnp.abs(x) for x in inputs]
    return emit(Affine(_filled(primitive, params, inputs), _filled(primitive, params, absolute),
                       terms, fan), slots)
  return rule


def _dot_sizes(inputs, side, params):
  contracted, batched = params['dimension_numbers']
  shape = np.shape(inputs[side])
  of = lambda axes: math.prod(shape[axis] for axis in axes[side])
  return of(contracted), math.prod(shape) // max(of(contracted) * of(batched), 1)


def _conv_sizes(inputs, side, params):
  if side == 0:
    raise Uncovered('a kernel that depends on the image')
  shape, numbers = np.shape(inputs[1]), params.get('dimension_numbers')
  # The CPU's own convolution has kernels [rows, columns, in, out].
  out, channels = numbers.rhs_spec[:2] if numbers else (3, 2)
  groups = params.get('feature_group_count', 1)
  return (math.prod(shape) // shape[out], math.prod(shape) // (shape[channels] * groups))


def _sum(terms, fan=lambda x, params: 0):
  def rule(inputs, params, primitive, emit):
    x, = inputs
    apply = _filled(primitive, params, inputs)
    return emit(Affine(apply, apply, terms(x, params), fan(x, params), True), inputs)
  return rule


def _axes_size(x, params):
  return math.prod(x.shape[axis] for axis in params['axes'])


def _window_size(x, params):
  del x
  return math.prod(params['window_dimensions'])


def _convert(inputs, params, primitive, emit):
  if not jnp.issubdtype(params['new_dtype'], jnp.floating):
    raise Uncovered(f'conversion to {params["new_dtype"]}')
  return _structural(inputs, params, primitive, emit)


# Functions of one number: curves and kinks.


def _single(x):
  return x[None]


def curve(function, bottom, shape, growth=0.):
  """A function that falls up to `bottom` and rises from there.

  Args:
    function: elementwise.
    bottom: -inf if it rises everywhere, inf if it falls everywhere.
    shape: 'convex', 'concave', or the Lipschitz constant of its derivative; None if it is not
      known, whose lines are horizontal.
    growth: of its rounding error with abs(x).
  """
  def rounding(value, x):
    return _CURVE_ERROR * (1 + jnp.abs(value) + growth * x.size[0])

  def hull(x):
    lower, upper = x.lower[0], x.upper[0]
    low = function(jnp.clip(bottom, lower, upper))
    high = jnp.maximum(function(lower), function(upper))
    # Of an interval that leaves where the function is defined nothing is known.
    undefined = jnp.isnan(function(lower)) | jnp.isnan(function(upper))
    low, high = (jnp.where(undefined, jnp.nan, end) for end in (low, high))
    return interval(low - rounding(low, x), high + rounding(high, x))

  def lines(x):
    flat = hull(x)
    if shape is None:
      return _flat(x, flat)
    lower, upper = x.lower[0], x.upper[0]
    width, middle = upper - lower, (lower + upper) / 2
    at_middle, tangent = jax.jvp(function, (middle,), (jnp.ones_like(middle),))
    wide = width > _NARROW
    slope = jnp.where(wide, (function(upper) - function(lower)) / jnp.where(wide, width, 1),
                      tangent)
    tangent, slope = once((tangent, slope))
    above_line = lambda slope, at: function(at) - slope * at
    ends = [above_line(slope, lower), above_line(slope, upper)]
    touching = at_middle - tangent * middle
    if shape == 'convex':
      found = tangent, touching, slope, jnp.maximum(*ends)
    elif shape == 'concave':
      found = slope, jnp.minimum(*ends), tangent, touching
    else:
      # Between two points, a curve is off its chord by at most shape * distance^2 / 8.
      parts = np.linspace(0, 1, _PARTS + 1, dtype=np.float32).reshape(-1, *[1] * width.ndim)
      values = above_line(slope, lower + parts * width)
      off = shape * jnp.square(width / _PARTS) / 8
      found = slope, values.min(0) - off, slope, values.max(0) + off
    lower_slope, low, upper_slope, high = found
    steepest = jnp.maximum(jnp.abs(lower_slope), jnp.abs(upper_slope))
    off = rounding(flat.size, x) + _MORE * ROUNDING * steepest * x.size[0]
    # Of a wide interval, horizontal lines may be the better ones.
    worse = once(jnp.where(flat.upper - flat.lower <= high - low, 0., 1.))
    pick = lambda line, level: jnp.where(worse > 0, line, level)
    return Lines(pick(lower_slope, 0)[None], pick(low - off, flat.lower),
                 pick(upper_slope, 0)[None], pick(high + off, flat.upper))

  return Nonlinear(_single, hull, lines)


def _flat(x, hull):
  zero = jnp.zeros_like(x.lower)
  return Lines(zero, hull.lower, zero, hull.upper)


def kink(at, below, above):
  """slope x + shift for x < at, another for x > at, either of them at `at`.

  Args:
    at: of the shape of x, or a number.
    below: (slope, shift, size for the rounding of shift), or, of what float32 does not round,
      (slope, shift).
    above: likewise.
  """
  exact = len(below) == 2
  (slope0, shift0, size0), (slope1, shift1, size1) = (
      (*line, jnp.abs(line[1])) if exact else line for line in (below, above))
  is_relu = exact and isinstance(slope0, float) and (slope0, slope1) == (0., 1.)

  def extremes(x, slope):
    """The least and the largest f(x) - slope x: at an end, or on either side of the kink."""
    lower, upper = x
    kinked = jnp.clip(at, lower, upper)
    piece0 = lambda x: (slope0 - slope) * x + shift0
    piece1 = lambda x: (slope1 - slope) * x + shift1
    values = [
        jnp.where(lower <= at, piece0(lower), piece1(lower)),
        jnp.where(lower <= at, piece0(kinked), piece1(kinked)),
        jnp.where(upper >= at, piece1(kinked), piece0(kinked)),
        jnp.where(upper >= at, piece1(upper), piece0(upper))]
    least, largest = values[0], values[0]
    for value in values[1:]:
      least, largest = jnp.minimum(least, value), jnp.maximum(largest, value)
    return least, largest

  def off(x):
    steepest = jnp.maximum(jnp.abs(slope0), jnp.abs(slope1))
    return _MORE * ROUNDING * (steepest * x.size[0] + size0 + size1)

  def hull(x):
    if is_relu:  # The general way makes many passes of its gradient.
      lower, upper = x.lower[0], x.upper[0]
      # What has no lower bound may be NaN, and so is its ReLU.
      return Interval(jnp.where((lower > at) | (lower == -jnp.inf), lower, at),
                      jnp.where(upper > at, upper, at))
    least, largest = extremes((x.lower[0], x.upper[0]), 0.)
    return interval(least, largest) if exact else interval(least - off(x), largest + off(x))

  def part_above(x):
    """The share of the interval above the kink: 1 or 0 if all of it is on one side."""
    lower, upper = x.lower[0], x.upper[0]
    width = upper - lower
    return jnp.where(width > 0, jnp.clip((upper - at) / jnp.where(width > 0, width, 1), 0, 1),
                     jnp.where(lower >= at, 1., 0.))

  def usual(x):
    return jnp.where(part_above(x) >= 0.5, 1., 0.)

  def lines(x, share=None):
    lower, upper = x.lower[0], x.upper[0]
    above, share = part_above(x), usual(x) if share is None else share
    share = jnp.where((above > 0) & (above < 1), share, above)
    chord, free = (slope0 + (slope1 - slope0) * weight for weight in (above, share))
    convex = slope1 >= slope0
    lower_slope, upper_slope = once(
        (jnp.where(convex, free, chord), jnp.where(convex, chord, free)))
    low, _ = extremes((lower, upper), lower_slope)
    _, high = extremes((lower, upper), upper_slope)
    return Lines(lower_slope[None], low - off(x), upper_slope[None], high + off(x))

  def pieces(x):
    slope = jnp.stack([jnp.broadcast_to(slope0, x.lower.shape),
                       jnp.broadcast_to(slope1, x.lower.shape)])
    shift = jnp.stack([jnp.broadcast_to(shift0, x.lower[0].shape),
                       jnp.broadcast_to(shift1, x.lower[0].shape)])
    sign = jnp.where(slope[1, 0] >= slope[0, 0], 1., -1.)
    jump = jnp.abs((slope1 - slope0) * at + shift1 - shift0)
    return Pieces(sign * slope, sign * shift, sign, (0. if exact else off(x)) + jump)

  return Nonlinear(_single, hull, lines, usual, part_above, at if is_relu else None, pieces)


def _curve(function, bottom, shape):
  return lambda inputs, params, primitive, emit: emit(curve(function, bottom, shape), inputs)


def _integer_pow(inputs, params, primitive, emit):
  power = params['y']
  if not 0 <= power <= 8:  # Of larger ones, rounding is more than `_CURVE_ERROR`.
    raise Uncovered(f'the power {power}')
  function = lambda x: lax.integer_pow(x, power)
  return emit(curve(function, 0., 'convex') if power % 2 == 0 else curve(function, -np.inf, None),
              inputs)


def _abs(inputs, params, primitive, emit):
  return emit(kink(0., (-1., 0.), (1., 0.)), inputs)


def _extremum(sign):
  """max for sign 1, min for sign -1."""
  def rule(inputs, params, primitive, emit):
    slots, shape = _slots(inputs), _shape(*inputs)
    if len(slots) == 2:
      return emit(_largest(_stack(shape), sign), slots)
    level, = (x for x in inputs if not isinstance(x, Slot))
    if _known(level) and np.all(np.asarray(level) == -sign * np.inf):
      return slots[0]
    if shape != slots[0].shape:
      raise Uncovered(f'{slots[0].shape} and a constant of {np.shape(level)}')
    level = jnp.broadcast_to(level, shape)
    pieces = [(0., level), (1., 0.)]
    return emit(kink(level, *pieces[::sign]), slots)
  return rule


def _clamp(inputs, params, primitive, emit):
  low, x, high = inputs
  if not isinstance(x, Slot) or len(_slots(inputs)) > 1:
    raise Uncovered('limits that depend on the image')
  raised = _extremum(1)([low, x], params, primitive, emit)
  return _extremum(-1)([high, raised], params, primitive, emit)


def _known(x):
  return not isinstance(x, jax.core.Tracer)


# Functions of several numbers.


def _stack(shape):
  return lambda *arrays: jnp.stack([jnp.broadcast_to(x, shape) for x in arrays])


def _largest(stack, sign=1):
  """The maximum of the stack for sign 1, its minimum for sign -1."""
  def ends(x):
    return (x.lower, x.upper) if sign == 1 else (-x.upper, -x.lower)

  def hull(x):
    lower, upper = (end.max(0) for end in ends(x))
    return Interval(lower, upper) if sign == 1 else Interval(-upper, -lower)

  def lines(x):
    lower, upper = ends(x)
    # Without any lower bound there is no line below; the first entry may be padding.
    bounded = lower.max(0) > -jnp.inf
    first = once(jnp.where(bounded, jax.nn.one_hot(
        lower.argmax(0), len(lower), axis=0, dtype=lower.dtype), 0))
    lower_shift = jnp.where(bounded, 0, -jnp.inf)
    # No other entry can exceed the one with the largest lower bound.
    decided = jnp.where(first > 0, -jnp.inf, upper).max(0) <= lower.max(0)
    upper_slope = once(jnp.where(decided, first, 0))
    upper_shift = jnp.where((upper_slope > 0).any(0), 0, upper.max(0))
    if sign == 1:
      return Lines(first, lower_shift, upper_slope, upper_shift)
    return Lines(upper_slope, -upper_shift, first, -lower_shift)

  def pieces(x):
    unit = sign * jnp.eye(len(x.lower)).reshape(len(x.lower), -1, *[1] * (x.lower.ndim - 1))
    # What is padding has no upper bound but -inf.
    return Pieces(jnp.broadcast_to(unit, (len(x.lower), *x.lower.shape)),
                  jnp.where(ends(x)[1] == -jnp.inf, -jnp.inf, 0.),
                  jnp.full(x.lower.shape[1:], float(sign)), jnp.zeros(x.lower.shape[1:]))

  return Nonlinear(stack, hull, lines, pieces=pieces)


def _reduce_max(inputs, params, primitive, emit):
  axes = params['axes']
  sign = 1 if primitive.name == 'reduce_max' else -1

  def stack(x):
    x = jnp.moveaxis(x, axes, range(len(axes)))
    return x.reshape((-1,) + x.shape[len(axes):])

  return emit(_largest(stack, sign), inputs)


def _reduce_window_max(inputs, params, primitive, emit):
  sides, strides = params['window_dimensions'], params['window_strides']
  dilation = params['window_dilation']
  if any(step != 1 for step in params['base_dilation']):
    raise Uncovered('a dilated base')
  shape = inputs[0].shape
  padding = [(low, high, 0) for low, high in params['padding']]
  padded = [length + low + high for length, (low, high, _) in zip(shape, padding)]
  out = [(length - (side - 1) * step - 1) // stride + 1
         for length, side, step, stride in zip(padded, sides, dilation, strides)]

  def windows(x, fill):
    x = lax.pad(x, jnp.asarray(fill, x.dtype), padding)
    places = [[offset * step for offset, step in zip(place, dilation)]
              for place in np.ndindex(*sides)]
    return jnp.stack([
        lax.slice(x, place, [start + (length - 1) * stride + 1
                             for start, length, stride in zip(place, out, strides)], strides)
        for place in places])

  inside = windows(np.ones(shape, np.float32), 0.) > 0
  inner = _largest(lambda x: windows(x, 0.))
  # Padding is no entry of a window.
  masked = lambda x: Interval(jnp.where(inside, x.lower, -jnp.inf),
                              jnp.where(inside, x.upper, -jnp.inf))
  return emit(Nonlinear(inner.stack, lambda x: inner.hull(masked(x)),
                        lambda x: inner.lines(masked(x)),
                        pieces=lambda x: inner.pieces(masked(x))), inputs)


def _product_hull(x):
  ends = [a * b for a in (x.lower[0], x.upper[0]) for b in (x.lower[1], x.upper[1])]
  off = _MORE * ROUNDING * x.size[0] * x.size[1]
  return interval(jnp.stack(ends).min(0) - off, jnp.stack(ends).max(0) + off)


def _product_lines(x):
  """The middle of two planes each: (x - a) (y - b) has a known sign at each pair of ends a and b.

  Of the two below, as of the two above, none is better in the middle of the intervals (McCormick
  1976).
  """
  (low_x, low_y), (high_x, high_y) = x
  off = _MORE * ROUNDING * x.size[0] * x.size[1]
  slope = once(((x.lower + x.upper) / 2)[::-1])
  return Lines(slope, -(low_x * low_y + high_x * high_y) / 2 - 4 * off,
               slope, -(low_x * high_y + high_x * low_y) / 2 + 4 * off)


# Comparisons, and what selects by them.


def _compare(above):
  def rule(inputs, params, primitive, emit):
    x, y = inputs
    if isinstance(x, Slot) and isinstance(y, Slot):
      raise Uncovered('a comparison of two values that depend on the image')
    flip = isinstance(y, Slot)
    slot, threshold = (y, x) if flip else (x, y)
    return Comparison(slot, threshold, above != flip)
  return rule


def _not_itself(value):
  """x != x, or x == x: of what is finite, known."""
  def rule(inputs, params, primitive, emit):
    x, y = inputs
    if not (isinstance(x, Slot) and x == y):
      raise Uncovered('equality with another value')
    emit.finite.append(x)
    return jnp.full(x.shape, value)
  return rule


def _is_finite(inputs, params, primitive, emit):
  x, = inputs
  emit.finite.append(x)
  return jnp.ones(x.shape, bool)


def _select(inputs, params, primitive, emit):
  which, *cases = inputs
  if isinstance(which, Slot) or len(cases) != 2:
    raise Uncovered('a choice that depends on the image')
  if not isinstance(which, Comparison):
    return _structural(inputs, params, primitive, emit)
  shape = _shape(*cases)
  below, above = cases if which.above else cases[::-1]
  lines = [emit.line(case, which.slot) for case in (below, above)]
  if None not in lines and which.slot.shape == shape:
    whole = lambda x: jnp.broadcast_to(x, shape)
    return emit(kink(whole(which.threshold), *([whole(x) for x in line] for line in lines)),
                [which.slot])
  # Either of them.
  constants = [jnp.broadcast_to(x, shape) for x in cases if not isinstance(x, Slot)]

  def hull(x):
    return Interval(jnp.concatenate([x.lower, *(c[None] for c in constants)]).min(0),
                    jnp.concatenate([x.upper, *(c[None] for c in constants)]).max(0))

  return emit(Nonlinear(_stack(shape), hull, lambda x: _flat(x, hull(x))), _slots(cases))


def _same(inputs, params, primitive, emit):
  return inputs[0]


_increasing = -np.inf
_STRUCTURAL = ('reshape', 'transpose', 'squeeze', 'expand_dims', 'concatenate', 'pad', 'slice',
               'dynamic_slice', 'rev', 'stack')
RULES = {
  **dict.fromkeys(_STRUCTURAL, _structural),
  **dict.fromkeys(('copy', 'copy_p', 'optimization_barrier'), _same),
  'convert_element_type': _convert,
  'broadcast_in_dim': _fanned,
  'tile': _fanned,
  'add': _sum_of_two(True),
  'add_any': _sum_of_two(True),
  'sub': _sum_of_two(False),
  'neg': _neg,
  'mul': _mul,
  'div': _div,
  'dot_general': _product(_dot_sizes),
  'conv_general_dilated': _product(_conv_sizes),
  'robust_jax_conv': _product(_conv_sizes),
  'reduce_sum': _sum(_axes_size),
  'reduce_window_sum': _sum(_window_size, _window_size),
  'max': _extremum(1),
  'min': _extremum(-1),
  'clamp': _clamp,
  'abs': _abs,
  'reduce_max': _reduce_max,
  'reduce_min': _reduce_max,
  'reduce_window_max': _reduce_window_max,
  'integer_pow': _integer_pow,
  'square': _curve(jnp.square, 0., 'convex'),
  'exp': _curve(jnp.exp, _increasing, 'convex'),
  'expm1': _curve(jnp.expm1, _increasing, 'convex'),
  'log': _curve(jnp.log, _increasing, 'concave'),
  'log1p': _curve(jnp.log1p, _increasing, 'concave'),
  'sqrt': _curve(jnp.sqrt, _increasing, 'concave'),
  'rsqrt': _curve(lax.rsqrt, np.inf, 'convex'),
  'tanh': _curve(jnp.tanh, _increasing, 0.77),
  'logistic': _curve(jax.nn.sigmoid, _increasing, 0.0963),
  'erf': _curve(lax.erf, _increasing, 0.969),
  'erfc': _curve(lax.erfc, np.inf, 0.969),
  'gt': _compare(True),
  'ge': _compare(True),
  'lt': _compare(False),
  'le': _compare(False),
  'ne': _not_itself(False),
  'eq': _not_itself(True),
  'is_finite': _is_finite,
  'select_n': _select,
}


def _compound(function, bottom, shape, growth=0.):
  return function, curve(function, bottom, shape, growth)


_exact_gelu = functools.partial(jax.nn.gelu, approximate=False)
# Functions of jax.nn that are several primitives, and tighter as one curve; of a name, all of them.
COMPOUNDS = {
  'softplus': [_compound(jax.nn.softplus, _increasing, 'convex')],
  'silu': [_compound(jax.nn.silu, -1.2784645, 0.5, growth=1.)],
  'elu': [_compound(jax.nn.elu, _increasing, 1.0)],
  'gelu': [_compound(jax.nn.gelu, -0.7524614, 0.85, growth=1.),
           _compound(_exact_gelu, -0.7517916, 0.8, growth=1.)],
}
