"""Lower bounds of margins for training: of a whole batch at once, without rounding errors."""

import jax
import jax.numpy as jnp
from jax import lax

from robust_jax import inputs
from robust_jax.bounds import propagate, rules
from robust_jax.bounds.rules import Affine, Interval, Nonlinear


def margins(logits_fn, lower, upper, labels, *, beta=0.):
  """(1 - beta) IBP + beta CROWN-IBP: lower bounds of z_y - z_j of all images between two.

  The bounds of `ibp`, with z_y - z_j folded into the last affine layers, and those of `crown` by
  'crown_ibp', but that the better of the two is not taken. They are not moved outward by rounding
  errors, so that they prove nothing, and have the width that their formulas give where that is
  less than rounding: to be differentiated in the parameters of logits_fn.

  Args:
    logits_fn: as of `ibp`; that it computes each image by itself is not checked.
    lower: [batch, ...] float32, the least value of each pixel.
    upper: likewise, the largest.
    labels: [batch] int.
    beta: scalar in [0, 1], which may be traced; where it is 0 the second is not computed.

  Returns:
    ([batch, classes], where the row of the label is 0; and the list of the intervals of x - a,
    `rules.Interval` of [batch, entries] each, of every max(x, a), in their order).

  Raises:
    ValueError: logits_fn has a primitive without a rule, draws random numbers, computes in less
      than float32, or has something in it of which the batch is not the first axis.

  Reference:
    Gowal et al., On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust
    Models, 2018; Zhang et al., Towards Stable and Efficient Training of Verifiably Robust Neural
    Networks, 2020.
  """
  graph = _trace(logits_fn, lower)
  intervals = propagate.intervals(graph, Interval(lower, upper), rounded=False)
  unit = jnp.eye(inputs.num_classes(logits_fn, lower))
  # [classes, batch, classes]: a row for each class, of all images.
  rows = jnp.moveaxis(unit[jnp.asarray(labels)][:, None] - unit, 1, 0)

  def bound(through):
    of_row = lambda seed: _lower(graph, intervals, seed, through)
    return jax.vmap(of_row)(rows).T

  # Compared as a number where it is one, so that a plain IBP has no second branch to compile.
  mixed = lambda: (1 - beta) * bound(False) + beta * bound(True)
  if inputs.concrete(beta):
    found = mixed() if beta > 0 else bound(False)
  else:
    found = lax.cond(beta > 0, mixed, lambda: bound(False))
  kinks = [Interval(*((end - step.rule.at).reshape(len(lower), -1)
                      for end in intervals[step.inputs[0]]))
           for step in graph.steps
           if isinstance(step.rule, Nonlinear) and step.rule.at is not None]
  return found, kinks


def _trace(logits_fn, images):
  """The Graph of the whole batch, whose entries are image by image in every slot."""
  size = len(images)
  whole, single = (
      propagate.trace(logits_fn, jax.ShapeDtypeStruct((number, *images.shape[1:]), images.dtype))
      for number in (size, 1))
  for step, alone in zip(whole.steps, single.steps, strict=True):
    found, expected = step.output.shape, alone.output.shape
    if found[:1] != (size * expected[0],) or found[1:] != expected[1:]:
      raise ValueError('logits_fn must keep the batch the first axis, got an array of shape '
                       f'{found} of {size} images')
  return whole


def _lower(graph, intervals, seed, through):
  """[batch]: lower bounds of <seed, logits>.

  Every slot x is written as its middle and what it is off, <a, x> = <a, m> + <a, x - m>: an affine
  step takes the second to its inputs by the transpose, and the first does not change.

  Args:
    graph, intervals: of the whole batch.
    seed: [batch, classes].
    through: whether nonlinear steps are replaced by lines; if not, the last ones' intervals end it.
  """
  each = lambda x: x.reshape(len(seed), -1).sum(1)
  total = each(seed * _middle(intervals[graph.output]))
  coefficients = {graph.output: seed}
  for step in reversed(graph.steps):
    a = coefficients.pop(step.output, None)
    if a is None:
      continue
    found = [intervals[x] for x in step.inputs]
    middles = [_middle(x) for x in found]
    if isinstance(step.rule, Affine):
      parts = jax.vjp(step.rule.apply, *middles)[1](a)
    elif not through:
      total -= each(jnp.abs(a) * _radius(intervals[step.output]))
      continue
    elif step.rule.at is not None:
      # About the middles, the chord of max(x, at) is above, and a line below is so much lower.
      (x,), y = found, intervals[step.output]
      over, under = x.upper - step.rule.at, step.rule.at - x.lower
      crosses, wide = (over > 0) & (under > 0), x.upper > x.lower
      chord = jnp.where(wide, (y.upper - y.lower) / jnp.where(wide, x.upper - x.lower, 1),
                        jnp.where(over > 0, 1., 0.))
      below = jnp.where(crosses, jnp.where(over >= under, 1., 0.), chord)
      plus = jax.nn.relu(a)
      total -= each(plus * jax.nn.relu(jnp.minimum(over, under))) / 2
      parts = [plus * below + (a - plus) * chord]
    else:
      stacked, pull = jax.vjp(step.rule.stack, *middles)
      lines = step.rule.lines(rules.stacked(step.rule, found))
      slopes = jnp.where(a > 0, lines.lower_slope, lines.upper_slope)
      shift = jnp.where(a > 0, lines.lower_shift, lines.upper_shift)
      shift += (slopes * stacked).sum(0) - _middle(intervals[step.output])
      total += each(a * shift)
      parts = pull(a * slopes)
    for x, part in zip(step.inputs, parts):
      coefficients[x] = coefficients[x] + part if x in coefficients else part
  a = coefficients.pop(graph.input, None)
  return total if a is None else total - each(jnp.abs(a) * _radius(intervals[graph.input]))


def _middle(x):
  return (x.lower + x.upper) / 2


def _radius(x):
  return (x.upper - x.lower) / 2
