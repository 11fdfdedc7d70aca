"""Networks of the user's own: 'package.module:Class', a Flax module, or a function that makes one.

The contract is that of `robust_jax.models`: images [batch, height, width, channel] to logits
[batch, classes], variables in 'params' and 'batch_stats' only. The module may take `train`, and
num_classes as a field. Flax's nn.Dropout draws each example's mask from the example's key, and
nn.BatchNorm has the statistics of all devices, as the layers of this project do.
"""

import dataclasses
import inspect
import typing

import jax
import jax.numpy as jnp
from flax import linen as nn

from robust_jax import keys, named
from robust_jax.errors import UserError
from robust_jax.models import external

# What a module has for others than the user.
_NOT_FIELDS = ('parent', 'name', 'axis_name')


def constructor(target):
  """(num_classes, *, hyper-parameters) -> Flax module, as the entries of `models.MODELS`.

  Args:
    target: 'package.module:Class', a subclass of flax.linen.Module, whose annotated fields are the
      hyper-parameters; or 'package.module:function', a function as those of `MODELS`.

  Raises:
    UserError: it is not there, or neither of the two.
  """
  found = named.load(target, 'config.model.name')
  if not inspect.isclass(found):
    return found
  if not issubclass(found, nn.Module):
    raise UserError(f'config.model.name is {target!r}: it must be a flax.linen.Module, or a '
                    f'function of num_classes that makes one, got the class {found.__name__}')
  fields = [field for field in dataclasses.fields(found)
            if field.init and field.name not in _NOT_FIELDS]
  takes_classes = 'num_classes' in [field.name for field in fields]

  def create(num_classes, **kwargs):
    return found(**kwargs, **({'num_classes': num_classes} if takes_classes else {}))

  # The fields as keyword-only arguments, for whoever asks for the signature.
  hints = typing.get_type_hints(found, include_extras=True)
  fields = [field for field in fields if field.name != 'num_classes']
  create.__annotations__ = {field.name: hints[field.name] for field in fields}
  create.__signature__ = inspect.Signature(
      [inspect.Parameter('num_classes', inspect.Parameter.POSITIONAL_OR_KEYWORD),
       *(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=_default(field))
         for field in fields)])
  return create


def _default(field):
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def check(model, network, image_shape, num_classes, *, target):
  """Raises UserError unless a module is as `robust_jax.models` says; nothing is computed.

  Args:
    model: what `constructor(target)` made.
    network: its `types.Network`, of one device.
    image_shape: (height, width, channel).
    num_classes: number of logits.
    target: its name.

  Raises:
    UserError: it raises an error in evaluation or in training; its logits have another shape or
      type; it has variables besides 'params' and 'batch_stats'.
  """
  given = f'config.model.name is {target!r}'
  if not isinstance(model, nn.Module):
    raise UserError(f'{given}, which must make a flax.linen.Module, got a {type(model).__name__}')
  images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
  train = {'train': False} if takes(model, 'train') else {}
  try:
    logits, variables = jax.eval_shape(
        lambda x: model.init_with_output(keys.root(0), x, **train), images)
  except Exception as error:  # Anything may happen in a user's module.
    raise UserError(f'{given}, which raises {named.line(error)} on images float32'
                    f'{list(images.shape)}; it must be callable as model(images) or '
                    'model(images, train=True)') from error
  shape = getattr(logits, 'shape', None)
  if shape is None or len(shape) != 2:
    got = f'a {type(logits).__name__}' if shape is None else f'shape {shape}'
    raise UserError(f'{given}, which must give logits [batch, classes], of two images '
                    f'(2, {num_classes}), got {got}')
  others = sorted({*variables} - {'params', 'batch_stats'})
  if others or not variables.get('params'):
    raise UserError(f"{given}, whose variables must be 'params' and, if there are others, "
                    f"'batch_stats', got {', '.join(map(repr, variables)) or 'none'}")
  zeros = lambda kind: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
                                    variables.get(kind, {}))
  params, batch_stats = zeros('params'), zeros('batch_stats')
  calls = {'evaluation': network.eval_logits({'params': params, 'batch_stats': batch_stats}),
           'training': lambda x: network.train_logits(params, batch_stats, x, keys.root(0))[0]}
  for what, logits_fn in calls.items():
    external.check(logits_fn, image_shape, num_classes, target=f'{given}, which in {what}')


def takes(model, name):
  """Whether a module is called with an argument of this name."""
  return name in inspect.signature(model.__call__).parameters


def flax_layers(example_keys, axis_name):
  """A `nn.intercept_methods` interceptor: nn.Dropout and nn.BatchNorm as this project has them.

  nn.Dropout drops by the examples' keys, so that neither their place in a batch nor the number of
  devices changes it. nn.BatchNorm without an axis_name has the statistics of all devices.

  Args:
    example_keys: [batch] keys.
    axis_name: the mapped axis over devices, or None.
  """

  def intercept(call, args, kwargs, context):
    module = context.module
    if context.method_name != '__call__':
      return call(*args, **kwargs)
    if isinstance(module, nn.BatchNorm) and module.axis_name is None:
      object.__setattr__(module, 'axis_name', axis_name)  # Modules are frozen; this is a copy.
    if isinstance(module, nn.Dropout):
      return _dropout(call, module, example_keys, *args, **kwargs)
    return call(*args, **kwargs)

  return intercept


# A stream of random numbers that tells the dropout layers of a network from each other.
LAYERS = 'robust_jax_layers'


def _dropout(call, module, example_keys, inputs, deterministic=None, rng=None):
  """nn.Dropout's `call`, by the examples' keys."""
  off = nn.merge_param('deterministic', module.deterministic, deterministic)
  if off or rng is not None or module.rate in (0, 1) or not module.has_rng(LAYERS):
    return call(inputs, deterministic, rng)
  if (not inputs.ndim or len(inputs) != len(example_keys)
      or {0, -inputs.ndim} & {*module.broadcast_dims}):
    raise ValueError('nn.Dropout must have the batch as the first axis of its inputs, and not in '
                     f'broadcast_dims, as its masks come from the examples; got {inputs.shape}')
  shape = list(inputs.shape)
  for axis in module.broadcast_dims:
    shape[axis] = 1
  number = jax.random.bits(module.make_rng(LAYERS))
  draw = lambda key: jax.random.bernoulli(key, 1 - module.rate, shape[1:])
  kept = jax.vmap(draw)(keys.fold_in(example_keys, number))
  return jnp.where(kept, inputs / (1 - module.rate), 0)
