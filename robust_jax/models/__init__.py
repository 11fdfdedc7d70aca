"""Classifiers: Flax modules, and what the rest of the project sees of them.

A new model is one entry of `MODELS`: a function (num_classes, *, hyper-parameters) -> Flax module.
The module maps images [batch, height, width, channel] to logits [batch, classes], float32 or what
becomes it, and has variables in 'params' and, of BatchNorm, 'batch_stats'. A module of one's own,
'package.module:Class', needs no entry (see `own`). Arguments and fields that mean the same in all
models are:

  num_classes: number of logits.
  train: of a call that has it, whether it is one of training.
  dtype: what the layers compute in; variables and logits are float32.
  remat: whether the backward pass computes each block again instead of keeping its inner results:
    a second forward pass for less memory.
  axis_name: of a module with BatchNorm, the mapped axis over which batch statistics are averaged;
    None for the statistics of one device.
  key: of a module with `layers.dropout`, the [batch] keys of the masks; without it nothing is
    dropped. Flax's nn.Dropout needs none.
  takes_pixels: True of a module that normalises its images itself.

The rest of the project sees `logits_fn` (a trained classifier) and `network` (a classifier to
train), which hold the input normalisation, so that attacks, noise and radii are in [0, 1] pixel
units.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from robust_jax import inputs, keys
from robust_jax.errors import UserError, choices
from robust_jax.models import (
    cnn,
    densenet,
    efficientnet,
    external,
    mlp,
    own,
    preact_resnet,
    resnet,
    vgg,
)
from robust_jax.types import Network

__all__ = ['HEAD', 'MODELS', 'create', 'init', 'logits_fn', 'network', 'shapes']

# The name of the last layer of every network. Only layers with this prefix, it and its norm if it
# has one, depend on the number of classes.
HEAD = 'logits'
MODELS = {
  'linear': mlp.linear,
  'mlp': mlp.mlp,
  'cnn': cnn.cnn,
  'lenet': cnn.lenet,
  'madry_cnn': cnn.madry_cnn,
  'shaham_cnn': cnn.shaham_cnn,
  'ibp_cnn': cnn.ibp_cnn,
  'cnn7': cnn.cnn7,
  'vgg': vgg.vgg,
  'resnet20': resnet.resnet20,
  'resnet56': resnet.resnet56,
  'resnet110': resnet.resnet110,
  'resnet18': resnet.resnet18,
  'resnet50': resnet.resnet50,
  'preact_resnet18': preact_resnet.preact_resnet18,
  'wide_resnet': preact_resnet.wide_resnet,
  'wrn_28_10': preact_resnet.wrn_28_10,
  'wrn_32_10': preact_resnet.wrn_32_10,
  'wrn_34_10': preact_resnet.wrn_34_10,
  'densenet': densenet.densenet,
  'efficientnet_lite0': efficientnet.efficientnet_lite0,
  'external': external.external,
}


def create(name, num_classes, **kwargs):
  """The Flax module `MODELS[name](num_classes, **kwargs)`.

  Args:
    name: an entry of `MODELS`, or 'package.module:Class' (see `own`).
    num_classes: number of logits.
    **kwargs: the model's own hyper-parameters.

  Returns:
    A module: `model.apply(variables, images, train=...)` gives logits [batch, classes].

  Raises:
    UserError: there is no such model.
  """
  # A config that was saved has lists, which a module cannot be hashed with.
  kwargs = {field: tuple(value) if isinstance(value, list) else value
            for field, value in kwargs.items()}
  if ':' in name:
    return own.constructor(name)(num_classes, **kwargs)
  if name not in MODELS:
    raise UserError(choices('config.model.name', MODELS, name))
  return MODELS[name](num_classes, **kwargs)


def init(key, model, image_shape):
  """Fresh variables of a model.

  Args:
    key: one key.
    model: a module from `create`.
    image_shape: (height, width, channel).

  Returns:
    {'params': ..., 'batch_stats': ...}; batch_stats is {} for a model without BatchNorm.
  """
  images = jnp.zeros((1, *image_shape))
  # Runs once, so that XLA's optimisation costs more time than it saves (ResNet-20: 12 s for 4 s).
  run = jax.jit(functools.partial(model.init, **_train(model, False)),
                compiler_options={'xla_backend_optimization_level': 0})
  return _both(run(key, images))


def shapes(model, image_shape):
  """What `init` would return, as jax.ShapeDtypeStruct; nothing is computed."""
  return _both(jax.eval_shape(
    functools.partial(model.init, **_train(model, False)), keys.root(0),
    jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)))


def _both(variables):
  return {'params': variables.get('params', {}), 'batch_stats': variables.get('batch_stats', {})}


def logits_fn(model, variables, *, mean=0.0, std=1.0):
  """The classifier images -> model((images - mean) / std) in eval mode.

  The result is a pytree whose leaves are the variables: a jitted function that takes it compiles
  once for a model, whatever the parameters.

  Args:
    model: a module from `create`.
    variables: {'params', 'batch_stats'}, as `init` returns them.
    mean: a number, or one for each channel, in [0, 1] pixel units.
    std: likewise.

  Returns:
    A LogitsFn: images [batch, height, width, channel] in [0, 1] -> logits [batch, classes]
    float32; all NaN for an image with a pixel that is not finite. It raises ValueError for integer
    images.
  """
  mean, std = _constants(model, mean, std)
  return jax.tree_util.Partial(_eval_logits(model, _hashable(mean), _hashable(std)), variables)


def network(model, *, mean=0.0, std=1.0, axis_name=None):
  """A model as the two pure functions that training needs.

  Args:
    model: a module from `create`.
    mean: a number, or one for each channel, in [0, 1] pixel units.
    std: likewise.
    axis_name: the mapped axis (of `pmap` or `vmap`) over which batch statistics are averaged in
      training; None for the statistics of one device's images.

  Returns:
    types.Network. `train_logits(params, batch_stats, images, key)` returns logits [batch, classes]
    float32 and the updated batch_stats ({} for a model without BatchNorm). Its `key`, one key or
    [batch] keys, draws the dropout masks, each example's from its own key.
  """
  mean, std = _constants(model, mean, std)
  train_model = model.clone(axis_name=axis_name) if hasattr(model, 'axis_name') else model
  takes_key = own.takes(model, 'key')
  def train_logits(params, batch_stats, images, key):
    apply = functools.partial(
      train_model.apply, {'params': params, 'batch_stats': batch_stats},
      _normalise(images, mean, std), mutable=['batch_stats'], **_train(model, True))
    if takes_key:
      logits, updated = apply(key=keys.per_example(key, len(images)))
    elif key is None:
      logits, updated = apply()
    else:
      example_keys = keys.per_example(key, len(images))
      with nn.intercept_methods(own.flax_layers(example_keys, axis_name)):
        logits, updated = apply(rngs={own.LAYERS: keys.root(0)})
    return _nan_unless_finite(logits, images), updated.get('batch_stats', {})

  return Network(
    eval_logits=functools.partial(logits_fn, model, mean=mean, std=std),
    train_logits=train_logits)


def _train(model, value):
  return {'train': value} if own.takes(model, 'train') else {}


def _constants(model, mean, std):
  return (0., 1.) if getattr(model, 'takes_pixels', False) else (mean, std)


def _normalise(images, mean, std):
  return (images - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def _hashable(value):
  return value if np.ndim(value) == 0 else tuple(float(entry) for entry in value)


@functools.cache
def _eval_logits(model, mean, std):
  """One function for each classifier: jit knows functions by identity."""
  def eval_logits(variables, images):
    inputs.floating(images)
    logits = model.apply(variables, _normalise(images, mean, std), **_train(model, False))
    return _nan_unless_finite(logits, images)

  return eval_logits


def _nan_unless_finite(logits, images):
  # XLA:CPU's maxima may lose NaN: an image of NaN would have a class.
  finite = jnp.isfinite(images).all(axis=tuple(range(1, images.ndim)))
  return jnp.where(finite[:, None], logits.astype(jnp.float32), jnp.nan)
