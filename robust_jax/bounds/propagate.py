"""From a function to the steps in which bounds go through it: a walk over its jaxpr."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from robust_jax import inputs, smoothing
from robust_jax.bounds import rules
from robust_jax.bounds.rules import Affine, Comparison, Nonlinear, Slot

_RANDOM = ('random_bits', 'threefry2x32', 'rng_bit_generator', 'rng_uniform', 'random_gamma')
# Primitives that are functions of their own jaxpr, and the parameter that has it.
_CALLS = {'jit': 'jaxpr', 'pjit': 'jaxpr', 'closed_call': 'call_jaxpr', 'core_call': 'call_jaxpr',
          'remat2': 'jaxpr', 'remat': 'jaxpr', 'checkpoint': 'jaxpr',
          'custom_jvp_call': 'call_jaxpr', 'custom_vjp_call': 'call_jaxpr'}


class Step(NamedTuple):
  """output = rule(inputs), of a primitive, or a function of jax.nn, of this name."""

  rule: Affine | Nonlinear
  inputs: tuple[Slot, ...]
  output: Slot
  name: str


class Graph(NamedTuple):
  """A function of one image.

  Attributes:
    steps: in the order of evaluation.
    input: of the image.
    output: of the logits.
    finite: slots that were taken to be finite, where the function asks; where their intervals are
      not, nothing is known of it.
  """

  steps: list[Step]
  input: Slot
  output: Slot
  finite: list[Slot]

  @property
  def slots(self):
    """All of them, by their numbers."""
    return [self.input, *(step.output for step in self.steps)]

  def is_known(self, intervals):
    """Whether what was taken to be finite is, in intervals of all slots."""
    return jnp.array([jnp.isfinite(intervals[x].size).all() for x in self.finite], bool).all()


def trace(logits_fn, image):
  """The Graph of images [1, ...] -> logits [1, classes].

  What does not depend on the image is computed as it is.

  Args:
    logits_fn: images -> logits, a function that JAX can trace and that draws nothing.
    image: jax.ShapeDtypeStruct [1, ...].

  Raises:
    ValueError: there is no rule for a primitive; random numbers; less than float32; or logits that
      do not depend on the image.
  """
  closed = jax.make_jaxpr(logits_fn)(image)
  graph = Walk(image)
  output, = graph.walk(closed.jaxpr, closed.consts, [graph.input])
  if not isinstance(output, Slot):
    raise ValueError('logits_fn must depend on the images, got a constant')
  return Graph(graph.steps, graph.input, output, graph.finite)


class Walk:
  """Steps as they are found; called as `emit` by the rules.

  Attributes:
    rules: {primitive: (inputs, params, primitive, emit) -> output}, see `rules`.
    compounds: whether some functions of jax.nn are a step of their own.
    aim: what is said of a network of which it cannot be done.
  """

  rules, compounds, aim = rules.RULES, True, 'be bounded'

  def __init__(self, image):
    self.steps, self.finite, self.name = [], [], None
    self.input = Slot(0, image.shape, image.dtype)
    # {slot: (slot x, slope, shift)} of what one step makes slope x + shift.
    self._lines = {}

  def __call__(self, rule, slots):
    number = len(self.steps) + 1
    inputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in slots]
    whole = rule.apply if isinstance(rule, Affine) else lambda *x: rule.stack(*x)[0]
    out = jax.eval_shape(whole, *inputs)
    slot = Slot(number, out.shape, out.dtype)
    self.steps.append(Step(rule, tuple(slots), slot, self.name))
    return slot

  def line(self, value, slot):
    """(slope, shift, sum of abs of what shift is the sum of) of slope * slot + shift, elementwise.

    None of any other value, or after more than four steps, which round.
    """
    if not isinstance(value, Slot):
      return 0., value, jnp.abs(value)
    slope, shift, size = 1., 0., 0.
    for _ in range(5):
      if value == slot:
        return slope, shift, size
      if value not in self._lines:
        return None
      value, inner_slope, inner_shift = self._lines[value]
      shift, size = shift + slope * inner_shift, size + jnp.abs(slope * inner_shift)
      slope = slope * inner_slope
    return None

  def walk(self, jaxpr, consts, arguments):
    """Values of a jaxpr's outputs, of those of its arguments."""
    values = dict(zip(jaxpr.constvars, consts)) | dict(zip(jaxpr.invars, arguments))
    for eqn in _used(jaxpr):
      inputs = [np.asarray(x.val, x.aval.dtype) if isinstance(x, Literal) else values[x]
                for x in eqn.invars]
      values.update(zip(eqn.outvars, self._outputs(eqn, inputs)))
    return [np.asarray(x.val, x.aval.dtype) if isinstance(x, Literal) else values[x]
            for x in jaxpr.outvars]

  def _outputs(self, eqn, inputs):
    name = eqn.primitive.name
    if name in _RANDOM:
      raise ValueError(f'logits_fn must be deterministic to {self.aim}, but draws random numbers '
                       f'({name})')
    bounded = [x for x in inputs if isinstance(x, (Slot, Comparison))]
    if name in _CALLS:
      inner = eqn.params[_CALLS[name]]
      if found := self.compounds and len(bounded) == len(inputs) == 1 and _compound(
          eqn.params.get('name'), inner):
        self.name = eqn.params['name']
        return [self(found, inputs)]
      # That of remat is not closed.
      return self.walk(getattr(inner, 'jaxpr', inner), getattr(inner, 'consts', ()), inputs)
    if not bounded:
      params = eqn.primitive.get_bind_params(eqn.params)
      # Versions of jax differ in whether there are functions as well.
      functions, params = params if isinstance(params, tuple) else ((), params)
      out = eqn.primitive.bind(*functions, *inputs, **params)
      return out if eqn.primitive.multiple_results else [out]
    for x in eqn.outvars:
      if jnp.issubdtype(x.aval.dtype, jnp.floating) and x.aval.dtype.itemsize < 4:
        raise ValueError(f'logits_fn must compute in float32 to {self.aim}, got {x.aval.dtype} '
                         f'({name})')
    if name == 'optimization_barrier':
      return inputs
    try:
      if name not in self.rules or (name != 'select_n' and len(bounded) > sum(
          isinstance(x, Slot) for x in bounded)):
        raise rules.Uncovered(', '.join(str(x.aval) for x in eqn.invars))
      self.name = name
      out = self.rules[name](inputs, eqn.params, eqn.primitive, self)
      for x in eqn.outvars:  # Integers wrap around.
        if isinstance(out, Slot) and not jnp.issubdtype(x.aval.dtype, jnp.floating):
          raise rules.Uncovered(x.aval.dtype)
    except rules.Uncovered as error:
      raise ValueError(f'logits_fn cannot {self.aim}: the primitive {name} is not covered for '
                       f'{error}') from None
    self._note_line(name, inputs, out)
    return [out]

  def _note_line(self, name, inputs, out):
    slots = [x for x in inputs if isinstance(x, Slot)]
    if len(slots) != 1 or not isinstance(out, Slot) or out.shape != slots[0].shape:
      return
    x, = slots
    constant = next((value for value in inputs if value is not x), None)
    if name == 'neg':
      line = -1., 0.
    elif name == 'mul':
      line = constant, 0.
    elif name == 'div':
      line = 1 / constant, 0.
    elif name == 'add':
      line = 1., constant
    elif name == 'sub':
      line = (1., -constant) if inputs[0] is x else (-1., constant)
    else:
      return
    self._lines[out] = x, *line


def _used(jaxpr):
  """The equations that outputs depend on."""
  needed, found = set(), []
  need = lambda values: needed.update(x for x in values if not isinstance(x, Literal))
  need(jaxpr.outvars)
  for eqn in reversed(jaxpr.eqns):
    if not needed.isdisjoint(eqn.outvars):
      need(eqn.invars)
      found.append(eqn)
  return found[::-1]


def _compound(name, inner):
  """The curve of a function of jax.nn, if `inner` is its jaxpr."""
  for function, curve in rules.COMPOUNDS.get(name, ()):
    image, = inner.in_avals
    eqn = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(image.shape, image.dtype)).eqns[0]
    if eqn.params.get('name') == name and str(eqn.params['jaxpr']) == str(inner):
      return curve
  return None


def compiled(function, logits_fn, *arrays, **settings):
  """function(logits_fn, *arrays, **settings), compiled.

  Once for all calls with a `jax.tree_util.Partial` of one function and arrays of the same shapes;
  anew at each call with another function, which may read what changes between calls.
  """
  if isinstance(logits_fn, jax.tree_util.Partial):
    structure = jax.tree.structure(logits_fn)
    return _kept(function, structure, tuple(settings.items()))(logits_fn, *arrays)
  return jax.jit(functools.partial(function, **settings))(smoothing.as_pytree(logits_fn), *arrays)


@functools.lru_cache(maxsize=32)
def _kept(function, structure, settings):
  del structure  # It holds logits_fn; apart, so that each is dropped with what was compiled.
  return jax.jit(functools.partial(function, **dict(settings)))


def check_alone(logits_fn, images):
  """Raises ValueError if the logits of images depend on the others of their batch."""
  apart = compiled(_apart, logits_fn, images) if len(images) > 1 else 0.
  if inputs.concrete(apart) and apart > 1e-3:
    raise ValueError('logits_fn must compute the logits of each image by itself, but they change '
                     f'by {float(apart):.2g} of the largest with the others of its batch')


def _apart(logits_fn, images):
  together = logits_fn(images)
  alone = jax.vmap(lambda image: logits_fn(image[None])[0])(images)
  return jnp.max(jnp.abs(together - alone)) / (1e-6 + jnp.max(jnp.abs(together)))


def intervals(graph, box, tighten=None, rounded=True):
  """Interval of every slot, {slot: Interval}.

  Args:
    graph: from `trace`.
    box: Interval of the image [1, ...].
    tighten: (slot, intervals) -> Interval, called for every input of a nonlinear step.
    rounded: whether those of affine steps are moved outward by their rounding.
  """
  found = {graph.input: box}
  for step in graph.steps:
    if isinstance(step.rule, Affine):
      found[step.output] = rules.affine_interval(step.rule, [found[x] for x in step.inputs],
                                                 rounded)
      continue
    if tighten:
      for slot in step.inputs:
        found[slot] = tighten(slot, found)
    found[step.output] = step.rule.hull(rules.stacked(step.rule, [found[x] for x in step.inputs]))
  return found


def box(image, epsilon):
  """The Interval of [0, 1] within epsilon of each pixel, outward by the rounding of the sums."""
  off = 2 * np.finfo(np.float32).eps
  # Of what is no image, which only jit lets through, nothing is known.
  image = jnp.where((image >= -inputs.TOLERANCE) & (image <= 1 + inputs.TOLERANCE), image, jnp.nan)
  return rules.interval(jnp.maximum(image - epsilon - off, jnp.minimum(image, 0)),
                        jnp.minimum(image + epsilon + off, jnp.maximum(image, 1)))
