"""Interval bound propagation."""

import jax
import jax.numpy as jnp
import numpy as np

from robust_jax import inputs
from robust_jax.bounds import linear, propagate, rules


def ibp(logits_fn, lower, upper, *, spec=None):
  """Bounds of the logits of all images between two: intervals, through one primitive at a time.

  Of W x + b, |x - c| <= r: |W x + b - (W c + b)| <= |W| r. With `spec` the bounds are of <c, z>, c
  folded into the last affine layers, where bounds of z_y - z_j are closer than those of z_y and
  z_j. A pure function, differentiable in the bounds and in what logits_fn has of parameters. Every
  bound is moved outward by its rounding error (see `rules`).

  Args:
    logits_fn: images [batch, ...] -> logits [batch, classes], traceable by JAX, deterministic, and
      of each image by itself: each is bounded as a batch of its own.
    lower: [batch, ...] float32, the least value of each pixel; of float64 the nearest float32.
    upper: likewise, the largest.
    spec: rows c, [rows, classes] or [batch, rows, classes]; None for the logits themselves.

  Returns:
    (lower, upper), [batch, classes] float32 each, or [batch, rows]; -inf and inf where there is no
    bound, as where lower exceeds upper under jit.

  Raises:
    ValueError: bounds that are not finite, or lower above upper; or logits_fn has a primitive
      without a rule, draws random numbers, or computes in less than float32.

  Reference:
    Gowal et al., On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust
    Models, 2018.
  """
  lower, upper = (jnp.asarray(inputs.images(value, name=name, in_box=False))
                  for name, value in (('lower', lower), ('upper', upper)))
  if lower.shape != upper.shape:
    raise ValueError(f'upper must have the shape of lower, {lower.shape}, got {upper.shape}')
  ordered = (lower <= upper) & jnp.isfinite(lower) & jnp.isfinite(upper)
  if inputs.concrete(ordered):
    for name, value in (('lower', lower), ('upper', upper)):
      inputs.check(name, np.asarray(value), np.isfinite(value), 'finite')
    inputs.check('upper', np.asarray(upper), np.asarray(ordered), 'at least lower')
  lower, upper = jnp.where(ordered, lower, -jnp.inf), jnp.where(ordered, upper, jnp.inf)
  classes = inputs.num_classes(logits_fn, lower)
  rows = None if spec is None else checked_rows(spec, len(lower), classes)
  found = propagate.compiled(_ibp, logits_fn, lower, upper, rows)
  propagate.check_alone(logits_fn, lower)
  return found


def _ibp(logits_fn, lower, upper, rows):
  graph = propagate.trace(logits_fn, jax.ShapeDtypeStruct((1, *lower.shape[1:]), lower.dtype))

  def one(lower, upper, rows):
    intervals = propagate.intervals(graph, rules.interval(lower, upper))
    is_known = graph.is_known(intervals)
    or_none = lambda end, none: jnp.where(is_known, end, none)
    if rows is None:
      low, high = intervals[graph.output]
      return or_none(low[0], -jnp.inf), or_none(high[0], jnp.inf)
    known = linear.prepare(graph.steps, intervals, {})
    seeds = rows.reshape(-1, *graph.output.shape)
    ends = folded(graph, intervals, known, jnp.concatenate([seeds, -seeds]))
    return or_none(ends[:len(seeds)], -jnp.inf), or_none(-ends[len(seeds):], jnp.inf)

  return jax.vmap(one)(lower[:, None], upper[:, None], rows)


def folded(graph, intervals, known, seeds):
  """[rows]: lower bounds of <seed, logits> by intervals of the last nonlinear functions.

  Args:
    graph, intervals, known: as of `linear.lower`.
    seeds: [rows, 1, classes].
  """
  return jax.vmap(lambda seed: linear.lower(graph, intervals, known, graph.output, seed))(seeds)


def checked_rows(spec, batch, classes):
  """`spec` as [batch, rows, classes].

  Raises:
    ValueError: another shape, or values that are not finite.
  """
  spec = inputs.numbers('spec', spec)
  if spec.shape[-1:] != (classes,) or spec.ndim not in (2, 3) or (
      spec.ndim == 3 and len(spec) != batch) or not spec.size:
    raise ValueError(f'spec must have shape (rows, {classes}) or ({batch}, rows, {classes}), got '
                     f'{spec.shape}')
  if inputs.concrete(spec):
    inputs.check('spec', np.asarray(spec), np.isfinite(spec), 'finite')
  return jnp.broadcast_to(jnp.asarray(spec, jnp.float32), (batch, *spec.shape[-2:]))
