"""An ONNX model of a network: a walk over its jaxpr that writes a node or two for each primitive.

Images stay [batch, height, width, channel]; between transposes, convolutions and pools are ONNX's,
of channels first. The walk is of one image; what has its axis first holds any number of them.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np

from robust_jax.bounds import propagate
from robust_jax.bounds import rules as bound_rules
from robust_jax.bounds.rules import Comparison, Slot, Uncovered
from robust_jax.errors import UserError

INPUT, OUTPUT = 'images_nhwc', 'logits'
# Of 2022, which every reader knows.
_OPSET, _IR_VERSION = 17, 8


def package(name):
  """A package of the extra `export`.

  Raises:
    UserError: it is not installed.
  """
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise UserError(f"--stages=export needs {name}, got an environment without it ({error}); pip "
                    "install -e '.[export]' installs it") from error


def make(logits_fn, shape):
  """onnx.ModelProto of `images_nhwc` [batch, *shape] float32 -> `logits` [batch, classes].

  Args:
    logits_fn: images -> logits, traceable, deterministic, of float32.
    shape: of an image, in pixel units.

  Raises:
    ValueError: a primitive that is not known, in one line.
    UserError: the package onnx is not installed.
  """
  onnx = package('onnx')
  image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  closed = jax.make_jaxpr(logits_fn)(image)
  walk = _Model(image, onnx)
  output, = walk.walk(closed.jaxpr, closed.consts, [walk.input])
  if not isinstance(output, Slot):
    raise ValueError('logits_fn must depend on the images, got a constant')
  walk.nodes.append(onnx.helper.make_node('Identity', [walk.name_of(output)], [OUTPUT]))
  value = lambda name, shape: onnx.helper.make_tensor_value_info(
      name, onnx.TensorProto.FLOAT, ['batch', *shape])
  graph = onnx.helper.make_graph(walk.nodes, 'network', [value(INPUT, shape)],
                                 [value(OUTPUT, output.shape[1:])], walk.constants)
  model = onnx.helper.make_model(graph, producer_name='robust_jax', ir_version=_IR_VERSION,
                                 opset_imports=[onnx.helper.make_opsetid('', _OPSET)])
  onnx.checker.check_model(model, full_check=True)
  return model


class _Model(propagate.Walk):
  """Nodes and constants as they are found."""

  compounds, aim = False, 'be written as ONNX'

  def __init__(self, image, onnx):
    super().__init__(image)
    self.onnx, self.nodes, self.constants, self.count = onnx, [], [], 0

  def name_of(self, value):
    """Of a slot, or of a constant, which is noted."""
    if isinstance(value, Slot):
      return f'v{value.number}' if value.number else INPUT
    value = np.asarray(value)
    if np.issubdtype(value.dtype, np.floating):
      value = value.astype(np.float32)
    name = f'c{len(self.constants)}'
    self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
    return name

  def __call__(self, op, inputs, shape, **attributes):
    """The slot, of this shape, of a node."""
    self.count += 1
    self.nodes.append(self.onnx.helper.make_node(
        op, [self.name_of(x) for x in inputs], [f'v{self.count}'], **attributes))
    return Slot(self.count, tuple(shape), np.dtype(np.float32))


def _shape(*inputs):
  return np.broadcast_shapes(*(np.shape(x) if not isinstance(x, Slot) else x.shape
                               for x in inputs))


def _elementwise(*ops):
  """Nodes of the same inputs, and of the result of the one before."""
  def rule(inputs, params, primitive, emit):
    for op in ops:
      inputs = [emit(op, inputs, _shape(*inputs))]
    return inputs[0]
  return rule


def _with(op, constant, then=None):
  """op(x, constant), and then another."""
  def rule(inputs, params, primitive, emit):
    x = emit(op, [inputs[0], np.float32(constant)], inputs[0].shape)
    return emit(then, [x], x.shape) if then else x
  return rule


def _integer_pow(inputs, params, primitive, emit):
  return _with('Pow', params['y'])(inputs, params, primitive, emit)


def _square(inputs, params, primitive, emit):
  return emit('Mul', inputs * 2, inputs[0].shape)


def _expm1(inputs, params, primitive, emit):
  return _with('Sub', 1)([emit('Exp', inputs, inputs[0].shape)], params, primitive, emit)


def _max(inputs, params, primitive, emit):
  slots = [x for x in inputs if isinstance(x, Slot)]
  levels = [x for x in inputs if not isinstance(x, Slot)]
  if levels and slots[0].shape == _shape(*inputs):
    if not np.any(levels[0]):
      return emit('Relu', slots, slots[0].shape)
    if np.all(np.asarray(levels[0]) == -np.inf):
      return slots[0]
  return emit('Max', inputs, _shape(*inputs))


def _clamp(inputs, params, primitive, emit):
  low, x, high = inputs
  raised = emit('Max', [x, low], x.shape)
  return emit('Min', [raised, high], x.shape)


def _same(inputs, params, primitive, emit):
  return inputs[0]


def _convert(inputs, params, primitive, emit):
  if params['new_dtype'] != np.float32:
    raise Uncovered(f'conversion to {params["new_dtype"]}')
  return inputs[0]


def _reshaped(x, shape, emit):
  """Entries in the same order, which begins with the image's number."""
  if not shape:
    raise Uncovered('a shape without an axis')
  return emit('Reshape', [x, np.array([-1, *shape[1:]], np.int64)], shape)


def _reshape(inputs, params, primitive, emit):
  return _reshaped(inputs[0], params['new_sizes'], emit)


def _squeeze(inputs, params, primitive, emit):
  x, = inputs
  _not_first(params['dimensions'])
  return _reshaped(x, [side for axis, side in enumerate(x.shape)
                       if axis not in params['dimensions']], emit)


def _not_first(axes):
  if 0 in axes:
    raise Uncovered('an operation on the axis of the batch')


def _transposed(x, axes, emit):
  if axes[0] != 0:
    raise Uncovered('an operation on the axis of the batch')
  if tuple(axes) == tuple(range(len(axes))):
    return x
  return emit('Transpose', [x], [x.shape[axis] for axis in axes], perm=list(axes))


def _transpose(inputs, params, primitive, emit):
  return _transposed(inputs[0], params['permutation'], emit)


def _broadcast(inputs, params, primitive, emit):
  x, shape, axes = inputs[0], params['shape'], params['broadcast_dimensions']
  if not axes or axes[0] != 0:
    raise Uncovered('an operation on the axis of the batch')
  apart = [1] * len(shape)
  for axis, side in zip(axes, x.shape):
    apart[axis] = side
  x = x if tuple(apart) == x.shape else _reshaped(x, apart, emit)
  return x if x.shape == shape else emit('Expand', [x, np.array(shape, np.int64)], shape)


def _concatenate(inputs, params, primitive, emit):
  axis = params['dimension']
  _not_first([axis])
  if not all(isinstance(x, Slot) for x in inputs):
    raise Uncovered('a constant beside the images')
  shape = list(inputs[0].shape)
  shape[axis] = sum(x.shape[axis] for x in inputs)
  return emit('Concat', inputs, shape, axis=axis)


def _pad(inputs, params, primitive, emit):
  x, fill = inputs
  low, high, between = zip(*params['padding_config'])
  if any(between) or min(low + high) < 0 or low[0] or high[0] or isinstance(fill, Slot):
    raise Uncovered(f'padding of {params["padding_config"]}')
  return emit('Pad', [x, np.array(low + high, np.int64), np.float32(fill)],
              [side + before + after for side, before, after in zip(x.shape, low, high)])


def _slice(inputs, params, primitive, emit):
  x, = inputs
  begin, end = params['start_indices'], params['limit_indices']
  strides = params['strides'] or (1,) * len(begin)
  if (begin[0], end[0], strides[0]) != (0, 1, 1):
    raise Uncovered('an operation on the axis of the batch')
  axes = range(1, len(begin))
  return emit('Slice', [x, *(np.array([values[axis] for axis in axes], np.int64)
                             for values in (begin, end, range(len(begin)), strides))],
              [-(-(b - a) // step) for a, b, step in zip(begin, end, strides)])


def _rev(inputs, params, primitive, emit):
  x, axes = inputs[0], list(params['dimensions'])
  _not_first(axes)
  same = lambda value: np.full(len(axes), value, np.int64)
  return emit('Slice', [x, same(-1), same(np.iinfo(np.int64).min), np.array(axes, np.int64),
                        same(-1)], x.shape)


def _reduce(op):
  def rule(inputs, params, primitive, emit):
    x, axes = inputs[0], list(params['axes'])
    _not_first(axes)
    shape = [side for axis, side in enumerate(x.shape) if axis not in axes]
    if op == 'ReduceSum':  # Its axes are an input.
      return emit(op, [x, np.array(axes, np.int64)], shape, keepdims=0)
    return emit(op, [x], shape, axes=axes, keepdims=0)
  return rule


def _dot(inputs, params, primitive, emit):
  x, kernel = inputs
  ((contracted,), (rows,)), batched = params['dimension_numbers']
  if (not isinstance(x, Slot) or isinstance(kernel, Slot) or batched != ((), ())
      or contracted != len(x.shape) - 1 or np.ndim(kernel) != 2):
    raise Uncovered(f'{np.shape(kernel)} with {params["dimension_numbers"]}')
  kernel = np.asarray(kernel) if rows == 0 else np.asarray(kernel).T
  return emit('MatMul', [x, kernel], [*x.shape[:-1], kernel.shape[1]])


def _conv(inputs, params, primitive, emit):
  x, kernel = inputs
  numbers, padding = params['dimension_numbers'], params['padding']
  if (isinstance(kernel, Slot) or any(side != 1 for side in params['lhs_dilation'])
      or params['batch_group_count'] != 1 or min(map(min, padding)) < 0):
    raise Uncovered('a dilated, cropped or grouped image')
  x = _transposed(x, numbers.lhs_spec, emit)
  kernel = np.transpose(np.asarray(kernel), numbers.rhs_spec)
  strides, dilation = params['window_strides'], params['rhs_dilation']
  sides = [(side + low + high - (length - 1) * apart - 1) // step + 1
           for side, (low, high), length, apart, step in zip(
               x.shape[2:], padding, kernel.shape[2:], dilation, strides)]
  x = emit('Conv', [x, kernel], [x.shape[0], kernel.shape[0], *sides], strides=list(strides),
           pads=[end[0] for end in padding] + [end[1] for end in padding],
           dilations=list(dilation), group=params['feature_group_count'])
  return _transposed(x, np.argsort(numbers.out_spec), emit)


def _pool(op):
  def rule(inputs, params, primitive, emit):
    x, = inputs
    sides, strides, padding = (params[name] for name in (
        'window_dimensions', 'window_strides', 'padding'))
    dilated = [*params['base_dilation'], *params['window_dilation']]
    if (len(sides) != 4 or (sides[0], sides[3], strides[0], strides[3]) != (1,) * 4
        or any((*padding[0], *padding[3])) or any(step != 1 for step in dilated)):
      raise Uncovered(f'windows of {sides}')
    out = [(side + low + high - length) // step + 1 for side, (low, high), length, step in zip(
        x.shape[1:3], padding[1:3], sides[1:3], strides[1:3])]
    x = _transposed(x, (0, 3, 1, 2), emit)
    more = {} if op == 'MaxPool' else {'count_include_pad': 1}
    x = emit(op, [x], [*x.shape[:2], *out], kernel_shape=list(sides[1:3]),
             strides=list(strides[1:3]), **more,
             pads=[end[0] for end in padding[1:3]] + [end[1] for end in padding[1:3]])
    if op == 'AveragePool':
      x = emit('Mul', [x, np.float32(sides[1] * sides[2])], x.shape)
    return _transposed(x, (0, 2, 3, 1), emit)
  return rule


def _select(inputs, params, primitive, emit):
  which, *cases = inputs
  if len(cases) != 2:
    raise Uncovered('a choice of several')
  shape = _shape(*cases)
  if not isinstance(which, Comparison):
    which = np.asarray(which)
    for case, always in ((cases[1], which.all()), (cases[0], not which.any())):
      if always and isinstance(case, Slot) and case.shape == shape:
        return case
    return emit('Where', [which, cases[1], cases[0]], shape)
  x, (below, above) = which.slot, cases if which.above else cases[::-1]
  lines = [emit.line(case, x) for case in (below, above)]
  if None not in lines and not np.any(which.threshold):
    (slope, *shifts), (one, *others) = lines
    if np.size(slope) and np.all(np.asarray(one) == 1) and not any(
        np.any(shift) for shift in (*shifts, *others)) and np.ptp(slope) == 0:
      return emit('LeakyRelu', [x], x.shape, alpha=float(np.ravel(slope)[0]))
  larger = emit('Greater', [x, np.asarray(which.threshold)], x.shape)
  return emit('Where', [larger, above, below], shape)


_Model.rules = {
  'reshape': _reshape, 'squeeze': _squeeze, 'transpose': _transpose, 'broadcast_in_dim': _broadcast,
  'concatenate': _concatenate, 'pad': _pad, 'slice': _slice, 'rev': _rev, 'copy': _same,
  'copy_p': _same, 'convert_element_type': _convert,
  'add': _elementwise('Add'), 'add_any': _elementwise('Add'), 'sub': _elementwise('Sub'),
  'mul': _elementwise('Mul'), 'div': _elementwise('Div'), 'neg': _elementwise('Neg'),
  'max': _max, 'min': _elementwise('Min'), 'clamp': _clamp, 'abs': _elementwise('Abs'),
  'exp': _elementwise('Exp'), 'expm1': _expm1, 'log': _elementwise('Log'),
  'log1p': _with('Add', 1, 'Log'), 'sqrt': _elementwise('Sqrt'),
  'rsqrt': _elementwise('Sqrt', 'Reciprocal'), 'tanh': _elementwise('Tanh'),
  'logistic': _elementwise('Sigmoid'), 'erf': _elementwise('Erf'), 'square': _square,
  'integer_pow': _integer_pow, 'dot_general': _dot, 'conv_general_dilated': _conv,
  'reduce_sum': _reduce('ReduceSum'), 'reduce_max': _reduce('ReduceMax'),
  'reduce_min': _reduce('ReduceMin'), 'reduce_window_max': _pool('MaxPool'),
  'reduce_window_sum': _pool('AveragePool'), 'select_n': _select,
  # A comparison is a node where something is selected by it.
  **{name: bound_rules.RULES[name] for name in ('gt', 'ge', 'lt', 'le', 'ne', 'eq', 'is_finite')}}
