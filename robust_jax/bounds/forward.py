"""Forward linear bounds: every value of a network between two lines of the image's pixels."""

import jax
import jax.numpy as jnp

from robust_jax.bounds import linear, rules
from robust_jax.bounds.rules import ROUNDING, Affine, Interval


def of_image(image):
  """Coefficients of the image [1, ...] itself: see `extend`."""
  unit = jnp.eye(image.size + 1, image.size, dtype=image.dtype).reshape(-1, *image.shape)
  # Of a negative pixel, what is rounded outward below would be rounded inward: nothing is known.
  unit = jnp.where(jnp.min(image) < 0, jnp.nan, unit)
  return rules.interval(unit, unit)


def extend(found, graph, last, intervals, known):
  """Completes the coefficients of slots up to that of number `last`.

  A value v has those of two lines, [pixels + 1, *shape of v] each, the last of them what is added:
  sum_k lower_k x_k + lower_-1 <= v <= sum_k upper_k x_k + upper_-1. As no pixel is negative, each
  coefficient may be an end of an interval, and goes through an affine step as one does; a lower
  one may exceed the upper one, since it is the lines that are in order.

  Args:
    found: {slot: Interval of coefficients}, changed; of graph.input at least.
    graph: a `propagate.Graph`.
    last: a number.
    intervals: {slot: Interval}, of inputs of these steps.
    known: {slot: Lines}, of `linear.prepare`, of the nonlinear steps.
  """
  for step in graph.steps[:last]:
    if step.output in found:
      continue
    of_inputs = [found[x] for x in step.inputs]
    if isinstance(step.rule, Affine):
      found[step.output] = _through_affine(step.rule, of_inputs)
    else:
      found[step.output] = _through_lines(step.rule, known[step.output], of_inputs)


def _through_affine(rule, inputs):
  """Coefficients of an affine function of those of its inputs."""
  pixels = jax.vmap(lambda *x: rules.affine_interval(_linear(rule), x))(
      *jax.tree.map(lambda end: end[:-1], inputs))
  added = rules.affine_interval(rule, jax.tree.map(lambda end: end[-1], inputs))
  return jax.tree.map(lambda pixels, added: jnp.concatenate([pixels, added[None]]), pixels, added)


def _linear(rule):
  """The rule without what it adds."""
  def apply(*arrays):
    return jax.jvp(rule.apply, tuple(jnp.zeros_like(x) for x in arrays), arrays)[1]
  return rule._replace(apply=apply)


def _through_lines(rule, lines, inputs):
  """Coefficients of a nonlinear function of those of its inputs."""
  x = jax.vmap(lambda *x: rules.stacked(rule, x))(*inputs)
  low = linear.least(lines.lower_slope, x.lower, x.upper)
  high = -linear.least(-lines.upper_slope, x.lower, x.upper)
  steepest = jnp.maximum(jnp.abs(lines.lower_slope), jnp.abs(lines.upper_slope))
  off = (len(steepest) + 8) * ROUNDING * linear.times(steepest, x.size).sum(1)
  ends = Interval(low.sum(1) - off, high.sum(1) + off)
  return rules.interval(_add_last(ends.lower, lines.lower_shift, -1),
                        _add_last(ends.upper, lines.upper_shift, 1))


def _add_last(coefficients, shift, outward):
  total = coefficients[-1] + shift
  return coefficients.at[-1].set(total + outward * ROUNDING * jnp.abs(total))


def values(coefficients, at_image, shape, chunk):
  """The Interval of a value of these coefficients.

  Args:
    coefficients: Interval of [pixels + 1, *shape of v].
    at_image: of `linear.at_ball`.
    shape: of the image, [1, ...].
    chunk: entries that are bounded at once.
  """
  rows = jnp.concatenate([end.reshape(len(end), -1).T for end in (
      coefficients.lower, -coefficients.upper)])
  bound = lambda row: linear.total([*at_image(row[:-1].reshape(shape)), row[-1]])
  low, high = jnp.split(linear.by_chunk(bound, rows, chunk), 2)
  shape = coefficients.lower.shape[1:]
  return Interval(low.reshape(shape), -high.reshape(shape))
