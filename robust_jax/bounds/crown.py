"""CROWN: bounds of margins by lines below and above every nonlinear function."""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax import lax

from robust_jax import inputs, schema, smoothing
from robust_jax.bounds import forward, linear, propagate
from robust_jax.bounds.ibp import checked_rows, folded
from robust_jax.bounds.rules import Affine, Interval, Nonlinear, stacked
from robust_jax.types import Count, Positive

Method = Literal['crown', 'crown_ibp', 'forward', 'alpha', 'ibp', 'wong_kolter']
Norm = Literal['linf', 'l2', 'l1']


@schema.checked
def crown(logits_fn, images, epsilon, *, norm: Norm = 'linf', labels=None, spec=None,
          method: Method = 'crown', num_steps: Count = 20, step_size: Positive = 0.1,
          chunk: Count = 256):
  """Lower bounds of z_y - z_j for every class j, over all images within epsilon of each.

  From the last layer to the first, <c, z> is bounded by a linear function of each layer's input:
  affine primitives by their transposes, the others by a line below and one above, between bounds of
  their inputs. At the image, the linear function's minimum over the ball within [0, 1] is the
  bound. Never less than that of `ibp`, but for 'wong_kolter'. Every bound is lowered by its
  rounding error (see `rules`), of float32: where a device's default is less, as TF32, it is
  logits_fn under jax.default_matmul_precision('highest') that is bounded.

  Args:
    logits_fn: images [batch, ...] -> logits [batch, classes], traceable by JAX, deterministic, and
      of each image by itself: each is bounded as a batch of its own.
    images: [batch, ...] in [0, 1], float.
    epsilon: radius in pixel units, scalar or [batch].
    norm: of the ball, which is cut to [0, 1] per pixel.
    labels: [batch] int, for rows z_y - z_j; the row j = y is 0.
    spec: instead of labels, rows c of <c, z>: [rows, classes] or [batch, rows, classes].
    method: what the bounds of inner layers are: 'crown', bounds of this kind; 'crown_ibp',
      intervals, differentiable and at the cost of a few passes; 'alpha', as 'crown', and then the
      slopes of lines through kinks, as ReLU's lower one, are optimised for every row. 'forward':
      from the first layer to the last, every value between two linear functions of the image, at
      the cost of some passes a pixel; one image at a time. 'ibp': intervals throughout, with the
      rows folded into the last layers. 'wong_kolter': the dual network of Wong and Kolter, their
      Algorithm 1 (Weng et al.'s Fast-Lin): as 'crown', but both lines through a ReLU between
      l < 0 < u have the slope u / (u - l), and no interval is kept where it is closer.
      Differentiable. Of ReLUs and other kinks alone.
    num_steps: of Adam, of 'alpha'.
    step_size: of Adam; slopes are between 0 and 1.
    chunk: entries of an inner layer that are bounded at once, for each image: time for memory.

  Returns:
    [batch, rows] float32; -inf where there is no bound. Under jit, images outside [0, 1],
    labels out of range and radii that are negative or not finite have bounds of -inf.

  Raises:
    ValueError: an argument out of range; or logits_fn has a primitive without a rule, or, for
      'wong_kolter', a nonlinear one that is no kink; draws random numbers, or computes in less than
      float32.

  Reference:
    Zhang et al., Efficient Neural Network Robustness Certification with General Activation
    Functions, 2018; Zhang et al., Towards Stable and Efficient Training of Verifiably Robust
    Neural Networks, 2020 (CROWN-IBP); Xu et al., Fast and Complete: Enabling Complete Neural
    Network Verification with Rapid and Massively Parallel Incomplete Verifiers, 2021 (alpha);
    Xu et al., Automatic Perturbation Analysis for Scalable Certified Robustness and Beyond, 2020
    (forward);
    Wong and Kolter, Provable Defenses against Adversarial Examples via the Convex Outer Adversarial
    Polytope, 2018; Weng et al., Towards Fast Computation of Certified Robustness for ReLU
    Networks, 2018.
  """
  if (labels is None) == (spec is None):
    raise ValueError(f'labels or spec must be given, one of them, got '
                     f'{"neither" if spec is None else "both"}')
  some = jnp.zeros(len(images), int) if labels is None else labels
  images, some, epsilon, _ = inputs.attacked(smoothing.victim(logits_fn), images, some,
                                             epsilon=epsilon, norm=norm)
  images = jnp.asarray(images)
  classes = inputs.num_classes(logits_fn, images)
  if spec is None:
    unit = jnp.eye(classes)
    spec = unit[jnp.asarray(some)][:, None] - unit
  rows = checked_rows(spec, len(images), classes)
  lower = propagate.compiled(
      _crown, logits_fn, images, jnp.broadcast_to(epsilon, (len(images),)), rows, norm=norm,
      method=method, num_steps=num_steps, step_size=step_size, chunk=chunk)
  propagate.check_alone(logits_fn, images)
  return lower


def certified(lower, labels):
  """Whether every other class is below the label's: [batch] bool.

  Args:
    lower: [batch, classes], from `crown` with these labels.
    labels: [batch] int.

  Raises:
    ValueError: lower of another shape, or labels that are no classes.
  """
  lower = jnp.asarray(lower)
  if lower.ndim != 2:
    raise ValueError(f'lower must have shape [batch, classes], got {lower.shape}')
  labels = inputs.labels(labels, len(lower), num_classes=lower.shape[1])
  other = jnp.arange(lower.shape[1]) != jnp.asarray(labels)[:, None]
  return jnp.all((lower > 0) | ~other, axis=1)


def _crown(logits_fn, images, epsilon, rows, **settings):
  graph = propagate.trace(logits_fn, jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype))
  if settings['method'] == 'wong_kolter':
    graph = graph._replace(steps=[_parallel(step) for step in graph.steps])
  of_one = lambda of_one: _bound(graph, *of_one, **settings)
  # Coefficients of all pixels are much memory.
  over_batch = jax.vmap(of_one) if settings['method'] != 'forward' else functools.partial(
      lax.map, of_one)
  return over_batch((images[:, None], epsilon, rows))


def _parallel(step):
  """The step with both lines of one slope."""
  rule = step.rule
  if not isinstance(rule, Nonlinear):
    return step
  if rule.parallel is None:
    raise ValueError("method must not be 'wong_kolter' for a logits_fn with nonlinear functions "
                     f'other than ReLU and its like, got {step.name}')
  return step._replace(rule=rule._replace(
      lines=lambda x: rule.lines(x, rule.parallel(x)), share=None))


def _bound(graph, image, epsilon, rows, *, norm, method, num_steps, step_size, chunk):
  """[rows] of one image [1, ...]."""
  intervals, known, at_image, forms = _inner(graph, image, epsilon, norm, method, chunk)
  seeds = rows.reshape(-1, *graph.output.shape)
  rough = folded(graph, intervals, known, seeds)
  is_known = graph.is_known(intervals)
  known_or_none = lambda bound: jnp.where(is_known, bound, -jnp.inf)
  if method == 'ibp':
    return known_or_none(rough)

  def bounds(shares):
    """[rows], of shares [rows, ...] of slots."""
    def of_row(seed, shares):
      others = {slot: step for slot, step in known.items() if slot not in shares}
      steps = linear.prepare(graph.steps, intervals, others, shares)
      return linear.lower(graph, intervals, steps, graph.output, seed, at_image=at_image,
                          forms=forms)
    return jax.vmap(of_row)(seeds, shares)

  best = bounds({})
  if method != 'wong_kolter':
    best = jnp.maximum(best, rough)
  if method != 'alpha':
    return known_or_none(best)
  shares = {}
  for step in graph.steps:
    if isinstance(step.rule, Nonlinear) and step.rule.share:
      usual = step.rule.share(stacked(step.rule, [intervals[x] for x in step.inputs]))
      shares[step.output] = jnp.broadcast_to(usual, (len(seeds), *usual.shape))
  optimiser = optax.adam(step_size)

  def improve(state, _):
    shares, memory, best = state
    found, pull = jax.vjp(bounds, shares)
    gradient, = pull(-jnp.ones_like(found))
    update, memory = optimiser.update(jax.tree.map(jnp.nan_to_num, gradient), memory)
    shares = jax.tree.map(lambda x, by: jnp.clip(x + by, 0, 1), shares, update)
    return (shares, memory, jnp.maximum(best, found)), None

  (shares, _, best), _ = lax.scan(improve, (shares, optimiser.init(shares), best), None, num_steps)
  return known_or_none(jnp.maximum(best, bounds(shares)))


def _inner(graph, image, epsilon, norm, method, chunk):
  """(intervals, known, at_image, forms), as `linear.lower` takes them, of one image [1, ...]."""
  box, known = propagate.box(image, epsilon), {}
  forms = {graph.input: forward.of_image(image)} if method == 'forward' else None
  at_image = linear.at_ball(image, box, epsilon, norm)
  loose = set() if method in ('ibp', 'crown_ibp') else _loose(graph, norm)

  def tighten(slot, intervals):
    if slot not in loose:
      return intervals[slot]
    loose.remove(slot)
    # Steps are numbered as their outputs are.
    linear.prepare(graph.steps[:slot.number], intervals, known)
    if forms:
      forward.extend(forms, graph, slot.number, intervals, known)
      return _both(forward.values(forms[slot], at_image, image.shape, chunk), intervals[slot])
    bound = lambda seed: linear.lower(graph, intervals, known, slot, seed, at_image=at_image)
    found = _entries(bound, slot, chunk)
    return found if method == 'wong_kolter' else _both(found, intervals[slot])

  intervals = propagate.intervals(graph, box, tighten)
  linear.prepare(graph.steps, intervals, known)
  if forms:
    last = max([0, *(step.output.number for step in graph.steps
                     if isinstance(step.rule, Nonlinear))])
    forward.extend(forms, graph, last, intervals, known)
  return intervals, known, at_image, forms


def _both(x, y):
  return Interval(jnp.maximum(x.lower, y.lower), jnp.minimum(x.upper, y.upper))


def inner(logits_fn, image, epsilon, *, norm, chunk):
  """Intervals of all values in a network: (of the slots in their order, whether they are known).

  The closer ones of 'crown' and, where it has them, 'wong_kolter'.

  Args:
    logits_fn: of a pytree.
    image: [1, ...].
    epsilon, norm, chunk: as of `crown`.
  """
  graph = propagate.trace(logits_fn, jax.ShapeDtypeStruct(image.shape, image.dtype))
  found, *_ = _inner(graph, image, epsilon, norm, 'crown', chunk)
  if all(isinstance(step.rule, Affine) or step.rule.parallel for step in graph.steps):
    steps = [_parallel(step) for step in graph.steps]
    others, *_ = _inner(graph._replace(steps=steps), image, epsilon, norm, 'wong_kolter', chunk)
    found = {slot: _both(ends, others[slot]) for slot, ends in found.items()}
  return [found[slot] for slot in graph.slots], graph.is_known(found)


def _entries(bound, slot, chunk):
  """Interval of a slot, of bound: seed -> lower bound of <seed, slot>, an entry at a time."""
  size = math.prod(slot.shape)

  def end(place):
    """The lower bound of an entry or, from `size` on, minus the upper one."""
    seed = jax.nn.one_hot(place % size, size, dtype=slot.dtype).reshape(slot.shape)
    return bound(jnp.where(place < size, seed, -seed))

  found = linear.by_chunk(end, jnp.arange(2 * size), chunk)
  return Interval(found[:size].reshape(slot.shape), -found[size:].reshape(slot.shape))


def _loose(graph, norm):
  """Inputs of nonlinear steps whose intervals, of those before, may not be the best ones.

  They are the best for what one affine function makes of a box, and for what moves or scales its
  entries or takes a function of each. A box is the image in linf; and the entries that come out of
  nonlinear functions, but these depend on each other, which lines see and intervals do not.
  """
  box, best, rough = 0, 1, 2
  state, loose = {graph.input: box if norm == 'linf' else best}, set()
  for step in graph.steps:
    worst = max(state[x] for x in step.inputs)
    if isinstance(step.rule, Nonlinear):
      for slot in step.inputs:
        if state[slot] == rough:
          loose.add(slot)
          state[slot] = best
      state[step.output] = best
    elif len(step.inputs) == 1 and step.rule.terms <= 1:
      state[step.output] = max(worst, best) if step.rule.fan else worst
    elif step.rule.terms == 0:  # A concatenation.
      state[step.output] = max(worst, best)
    else:
      state[step.output] = best if worst == box and len(step.inputs) == 1 else rough
  return loose
