"""A piecewise linear network in a ball as a mixed-integer linear program, and its solution."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, sparse

from robust_jax.bounds import propagate, rules
from robust_jax.bounds.crown import inner
from robust_jax.types import Count, Positive

Norm = Literal['linf', 'l1']

# HiGHS's, as scipy leaves them: of rows and integers, and of reduced costs.
_FEASIBILITY = 1e-6
_DUAL = 1e-7
# So far above 0 are values that are not looked at where only the sign is asked for.
_ABOVE = 1e-2
# scipy's status of a program without a point.
_INFEASIBLE = 2
# Columns of an affine step that are made at once.
_CHUNK = 256


class Program(NamedTuple):
  """A network in a ball: variables v with lower <= v <= upper and low <= matrix v <= high.

  Of every image in the ball, and what float32 or exact arithmetic makes of it, there is such a v.

  Attributes:
    matrix: sparse [rows, variables].
    low, high: [rows].
    lower, upper: [variables].
    binary: [variables] bool, those that are 0 or 1.
    logits: sparse [classes, variables]; the logits are within `off` of logits v + shift.
    shift: [classes].
    off: [classes].
    num_pixels: of the first variables, which are the image.
  """

  matrix: sparse.csr_array
  low: np.ndarray
  high: np.ndarray
  lower: np.ndarray
  upper: np.ndarray
  binary: np.ndarray
  logits: sparse.csr_array
  shift: np.ndarray
  off: np.ndarray
  num_pixels: int


def piecewise_linear(logits_fn, shape):
  """The Graph of images [1, *shape].

  Raises:
    ValueError: it has a nonlinear function that is not piecewise linear.
  """
  graph = propagate.trace(logits_fn, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
  for step in graph.steps:
    if isinstance(step.rule, rules.Nonlinear) and not step.rule.pieces:
      raise ValueError('logits_fn must be piecewise linear to be solved exactly (ReLU, leaky ReLU, '
                       f'abs, clip, max, max-pool), got {step.name}')
  return graph


def build(logits_fn, image, epsilon, *, norm: Norm = 'linf', chunk: Count = 256, graph=None):
  """The Program of a network in a ball; None where its values have no bounds.

  Args:
    logits_fn, image, epsilon, norm, chunk: as of `exact.exact`.
    graph: of `piecewise_linear`, if it is known.

  Raises:
    ValueError: logits_fn is not piecewise linear.
  """
  graph = graph or piecewise_linear(logits_fn, image.shape)
  ends, is_known = propagate.compiled(_inner, logits_fn, jnp.asarray(image)[None],
                                      np.float32(epsilon), norm=norm, chunk=chunk)
  ends = [rules.Interval(*(np.asarray(end) for end in x)) for x in ends]
  if not is_known or not all(np.isfinite(x.size).all() for x in ends):
    return None
  ends = dict(zip(graph.slots, ends))
  rows = _Rows()
  pixels = rows.variables(*ends[graph.input])
  if norm == 'l1':
    _add_l1(rows, pixels, image.astype(float).reshape(-1), epsilon)
  values = {graph.input: pixels}
  for step in graph.steps:
    make = _affine if isinstance(step.rule, rules.Affine) else _nonlinear
    values[step.output] = make(rows, step, [values[x] for x in step.inputs], ends)
  logits = values[graph.output]
  return Program(*rows.finished(), rows.wide(logits.matrix), logits.shift, logits.off,
                 image.size)


def _inner(logits_fn, images, epsilon, **settings):
  return inner(logits_fn, images, epsilon, **settings)


class _Value(NamedTuple):
  """Within off of matrix v + shift: sparse [entries, variables], [entries] and [entries]."""

  matrix: sparse.csr_array
  shift: np.ndarray
  off: np.ndarray


class _Rows:
  """Variables and rows of a program as they are found."""

  def __init__(self):
    self.lower, self.upper, self.binary = (np.zeros(0) for _ in range(3))
    self.rows = []

  def variables(self, lower, upper, *, binary=False):
    """The _Value of new variables."""
    begin, number = len(self.lower), np.size(lower)
    self.lower = np.append(self.lower, np.asarray(lower, float))
    self.upper = np.append(self.upper, np.asarray(upper, float))
    self.binary = np.append(self.binary, np.full(number, binary)).astype(bool)
    matrix = sparse.eye_array(number, begin + number, k=begin, format='csr')
    return _Value(matrix, np.zeros(number), np.zeros(number))

  def wide(self, matrix):
    """A matrix of the variables so far."""
    matrix = matrix.copy()
    matrix.resize((matrix.shape[0], len(self.lower)))
    return matrix

  def require(self, low, matrices, high):
    """low <= the sum of matrices times the variables <= high."""
    matrix = sum(self.wide(matrix) for matrix in matrices)
    ends = (np.broadcast_to(np.asarray(x, float), matrix.shape[0]) for x in (low, high))
    self.rows.append((matrix, *ends))

  def finished(self):
    """The first fields of a Program."""
    if not self.rows:
      self.require(-np.inf, [sparse.csr_array((1, len(self.lower)))], np.inf)
    matrices, low, high = zip(*self.rows)
    return (sparse.csr_array(sparse.vstack([self.wide(matrix) for matrix in matrices])),
            np.concatenate(low), np.concatenate(high), self.lower, self.upper, self.binary)


def _add_l1(rows, pixels, image, epsilon):
  """t >= abs(x - image), sum t <= epsilon."""
  moved = rows.variables(np.zeros(len(image)), np.full(len(image), 1.001 * epsilon + 1e-6))
  for sign in (1, -1):
    rows.require(-sign * image, [moved.matrix, -sign * pixels.matrix], np.inf)
  rows.require(-np.inf, [sparse.csr_array(np.ones((1, len(image)))) @ moved.matrix],
               epsilon * (1 + 2.0**-19) + len(image) * 2.0**-24)


def _jacobians(function, inputs):
  """Of a function that is affine in each array: sparse [entries of f(x), entries of x]."""
  zeros = [jnp.zeros(x.shape, x.dtype) for x in inputs]
  linear = jax.linearize(function, *zeros)[1]
  found = []
  for number, x in enumerate(inputs):
    of = lambda unit: linear(*zeros[:number], unit.reshape(x.shape), *zeros[number + 1:])  # noqa: B023
    size = math.prod(x.shape)
    parts = []
    for begin in range(0, size, _CHUNK):
      units = np.eye(min(_CHUNK, size - begin), size, k=begin, dtype=x.dtype)
      part = np.asarray(jax.vmap(of)(jnp.asarray(units)), float)
      parts.append(sparse.csr_array(part.reshape(len(units), -1)))
    found.append(sparse.vstack(parts).T.tocsr())
  return found


def _combined(rows, function, slots, values):
  """matrix and shift of a linear function of values, without what it adds."""
  parts = _jacobians(function, slots)
  return (sum(part @ rows.wide(x.matrix) for part, x in zip(parts, values)),
          sum(part @ x.shift for part, x in zip(parts, values)))


def _offs(function, slots, values):
  return np.asarray(function(*(jnp.asarray(x.off.reshape(slot.shape), slot.dtype)
                               for slot, x in zip(slots, values))), float).reshape(-1)


def _affine(rows, step, values, ends):
  rule, slots = step.rule, step.inputs
  matrix, shift = _combined(rows, rule.apply, slots, values)
  added = rule.apply(*(jnp.zeros(x.shape, x.dtype) for x in slots))
  off = _offs(rule.spread, slots, values)
  if rule.terms:  # No coefficients come back through it.
    own = rules.affine_off(rule._replace(fan=0), [ends[x] for x in slots])
    off = off + np.asarray(own, float).reshape(-1)
  return _Value(matrix, shift + np.asarray(added, float).reshape(-1), off)


def _nonlinear(rows, step, values, ends):
  """Each entry is the one piece that can be the largest, or a variable with rows."""
  rule, slots = step.rule, step.inputs
  x = rules.stacked(rule, [ends[slot] for slot in slots])
  pieces = rules.Pieces(*(np.asarray(part, float) for part in rule.pieces(x)))
  number, depth = pieces.slope.shape[:2]
  slope, shift = pieces.slope.reshape(number, depth, -1), pieces.shift.reshape(number, -1)
  sign = np.broadcast_to(pieces.sign, step.output.shape).reshape(-1)
  low, high = (np.asarray(end, float).reshape(depth, -1) for end in x)
  keep, most = _candidates(slope, shift, low, high)
  shift = np.where(keep, shift, 0)

  matrix, stacked_shift = _combined(rows, rule.stack, slots, values)
  stacked_off = _offs(rule.stack, slots, values).reshape(depth, -1)
  entries = len(sign)
  mixed = sparse.vstack([
      sum(sparse.dia_array((line[None], [0]), shape=(entries, entries)).tocsr()
          @ matrix[k * entries:(k + 1) * entries] for k, line in enumerate(of_piece))
      for of_piece in slope], format='csr')
  shift = shift + (slope * stacked_shift.reshape(depth, -1)).sum(1)
  off = (np.abs(slope) * stacked_off).sum(1) + np.broadcast_to(
      pieces.off, step.output.shape).reshape(-1)

  count, first = keep.sum(0), keep.argmax(0)
  open_, place = np.flatnonzero(count > 1), np.arange(entries)
  single = sign * (count == 1)
  value = _Value(
      _scaled(mixed[first * entries + place], single), single * shift[first, place],
      np.where(count == 1, off[first, place], 0))
  if not len(open_):
    return value
  hull = (np.asarray(end, float).reshape(-1)[open_] for end in ends[step.output])
  new = rows.variables(*hull)
  # The last candidate's binary is 1 less the sum of the others'.
  piece, which = np.nonzero(keep[:, open_])
  last = number - 1 - keep[::-1].argmax(0)[open_]
  is_last = piece == last[which]
  others = np.flatnonzero(~is_last)
  chosen = rows.variables(np.zeros(len(others)), np.ones(len(others)), binary=True)
  row = piece * entries + open_[which]
  bound, added, slack = (most.reshape(-1)[row], shift.reshape(-1)[row], off.reshape(-1)[row])
  own = sparse.csr_array((np.ones(len(others)), (others, np.arange(len(others)))),
                         shape=(len(piece), len(others)))
  of_entry = sparse.csr_array((np.ones(len(others)), (which[others], np.arange(len(others)))),
                              shape=(len(open_), len(others)))
  signed = _scaled(new.matrix[which], sign[open_[which]])
  rows.require(added - slack, [signed, -mixed[row]], np.inf)
  on = _scaled(own, bound) - _scaled(of_entry[which], np.where(is_last, bound, 0))
  rows.require(-np.inf, [signed, -mixed[row], on @ chosen.matrix],
               added + slack + np.where(is_last, 0, bound))
  if (count > 2).any():
    rows.require(-np.inf, [of_entry[count[open_] > 2] @ chosen.matrix], 1)
  spread = sparse.csr_array((np.ones(len(open_)), (open_, np.arange(len(open_)))),
                            shape=(entries, len(open_)))
  return value._replace(matrix=rows.wide(value.matrix) + rows.wide(spread @ new.matrix))


def _scaled(matrix, factors):
  return sparse.csr_array(sparse.dia_array(
      (factors[None].astype(float), [0]), shape=(len(factors),) * 2).tocsr() @ matrix)


def _candidates(slope, shift, low, high):
  """Which pieces [p, entries] can be the largest, and how far each can be below the largest."""
  there = shift > -np.inf
  level = np.where(there, shift, 0)
  # above[p, q]: the most of piece q less piece p.
  steeper = slope[None] - slope[:, None]
  low, high = np.where(np.isfinite(low), low, 0), np.where(np.isfinite(high), high, 0)
  above = np.where(steeper > 0, steeper * high, steeper * low).sum(2) + level[None] - level[:, None]
  above = np.where(there[None], above, -np.inf)
  # covered[p, q]: p is nowhere above q. Of two that are equal, the first is kept.
  covered = (above.transpose(1, 0, 2) <= 0) & there[:, None] & there[None]
  number = np.arange(len(slope))
  covered &= ~covered.transpose(1, 0, 2) | (number[:, None] > number)[..., None]
  return there & ~covered.any(1), np.maximum(above.max(1), 0)


def holds(problem, image, *, time_limit: Positive = 60.):
  """Whether a Program has values of the network at an image of the ball: those it must have."""
  if not np.isfinite(problem.upper - problem.lower).all():
    return False
  base, unit, rows, ends = _in_units(problem)
  fixed = np.asarray(image, float).reshape(-1)
  own = slice(len(fixed))
  ends.lb[own] = ends.ub[own] = (fixed - base[own]) / unit[own]
  found = optimize.milp(
      np.zeros(len(unit)), integrality=problem.binary.astype(int), bounds=ends, constraints=rows,
      options={'time_limit': max(time_limit, 1e-3)})
  return found.status == 0


def _in_units(problem):
  """(base, unit, constraints, bounds) of a Program in t, v = base + unit t.

  HiGHS's tolerances are absolute, and what is small it takes for 0. So the unit of a variable of
  less range than 1 is its range, from its lower end on, and rows of small entries are multiplied
  until the largest is 1.
  """
  width = problem.upper - problem.lower
  unit = np.where((width > 0) & ~problem.binary, np.minimum(width, 1), 1)
  base = np.where(problem.binary, 0, problem.lower)
  matrix = problem.matrix @ sparse.diags_array(unit)
  most = abs(matrix).max(axis=1).toarray().ravel() if matrix.nnz else np.ones(matrix.shape[0])
  size = 1 / np.where(most > 0, np.minimum(most, 1), 1)
  at = problem.matrix @ base
  return base, unit, optimize.LinearConstraint(
      sparse.csr_array(sparse.diags_array(size) @ matrix), size * (problem.low - at),
      size * (problem.high - at)), optimize.Bounds(
          (problem.lower - base) / unit, (problem.upper - base) / unit)


def minimum(problem, row, *, relaxed=False, time_limit: Positive = 60., sign_only=False):
  """(A lower bound of <row, logits>, pixels of the best point or None) by HiGHS.

  The bound is lowered by rounding and tolerances, see `exact`; -inf where there is none in time.

  Args:
    problem: Program.
    row: [classes].
    relaxed: binaries may be anything between 0 and 1.
    time_limit: in seconds.
    sign_only: look at values near 0 and below alone: where there are none, the bound is a little
      above 0, and much sooner found; where there are, the point need not be the least.
  """
  row = np.asarray(row, float)
  if not np.isfinite(problem.upper - problem.lower).all():
    return -np.inf, None
  base, unit, rows, ends = _in_units(problem)
  cost, shift = row @ problem.logits, row @ problem.shift
  shift, cost = shift + cost @ base, cost * unit
  off = (np.abs(row) @ problem.off + _FEASIBILITY * (1 + np.abs(cost).sum())
         + _DUAL * np.sum(ends.ub - ends.lb))
  constraints = [rows]
  level, options = _ABOVE + 2 * off - shift, {'time_limit': max(time_limit, 1e-3)}
  if sign_only:
    constraints.append(optimize.LinearConstraint(sparse.csr_array(cost[None]), -np.inf, level))
    options['mip_rel_gap'] = 1.
  found = optimize.milp(
      cost, integrality=0 if relaxed else problem.binary.astype(int), constraints=constraints,
      bounds=ends, options=options)
  point = None if found.x is None else (base + unit * found.x)[:problem.num_pixels]
  # scipy has the same status for a program that HiGHS does not take.
  if sign_only and found.status == _INFEASIBLE and 'infeasible' in found.message.lower():
    bound = level
  elif relaxed or not problem.binary.any():
    bound = found.fun if found.status == 0 else None
  else:
    bound = found.mip_dual_bound
  if bound is None or not np.isfinite(bound):
    bound = -np.inf
  return bound + shift - off, point
