"""What PyTorch's code bases call the layers of our networks, and the conversion of their weights.

A further architecture is one more `Naming`. All layers convert alike: a convolution's weight
[out, in, height, width] is our kernel [height, width, in, out], a dense layer's weight [out, in]
our kernel [in, out], BatchNorm's weight our scale, and its running statistics our batch_stats.
"""

import collections
import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from robust_jax import keys
from robust_jax.errors import UserError
from robust_jax.models import HEAD, preact_resnet, resnet
from robust_jax.models.torch_weights import files


class Naming(NamedTuple):
  """PyTorch's names for the layers of a family of our networks.

  Attributes:
    fits: Flax module -> whether it is of that family.
    layers: {our name: PyTorch's} of the layers outside of the residual blocks.
    block: PyTorch's name of a block; {stage} and {block} count from 0, {stage1} from 1.
    block_layers: {our name: PyTorch's} of the layers of a block.
    unused: modules that take no part in the network, but have weights in its checkpoints.
  """

  fits: Callable[[nn.Module], bool]
  layers: dict[str, str]
  block: str
  block_layers: dict[str, str]
  unused: tuple[str, ...] = ()

  def module(self, ours):
    """PyTorch's name of the layer whose path in our tree is `ours`."""
    if len(ours) == 1:
      return self.layers[ours[0]]
    stage, block = map(int, re.fullmatch(r'stage(\d+)_block(\d+)', ours[0]).groups())
    block = self.block.format(stage=stage - 1, stage1=stage, block=block - 1)
    return f'{block}.{self.block_layers[ours[1]]}'


def _preactivation(model, deepmind):
  """Which form a Wide ResNet has decides what its weights compute, though not their names."""
  return (isinstance(model, preact_resnet.PreActResNet)
          and model.form == ('deepmind' if deepmind else 'zagoruyko'))


_BLOCK = {'conv1': 'conv1', 'norm1': 'bn1', 'conv2': 'conv2', 'norm2': 'bn2'}
NAMINGS = {
    # torchvision's ResNets; the CIFAR ResNets of github.com/bearpaw/pytorch-classification, which
    # github.com/locuslab/smoothing and its successors use.
    'torchvision': Naming(
        lambda model: isinstance(model, resnet.ResNet),
        {'conv': 'conv1', 'norm': 'bn1', 'logits': 'fc'}, 'layer{stage1}.{block}',
        {**_BLOCK, 'conv3': 'conv3', 'norm3': 'bn3', 'shortcut': 'downsample.0',
         'shortcut_norm': 'downsample.1'}),
    # github.com/kuangliu/pytorch-cifar's PreActResNet, with the last BatchNorm of its successors.
    'pytorch-cifar': Naming(
        functools.partial(_preactivation, deepmind=False),
        {'conv': 'conv1', 'norm': 'bn', 'logits': 'linear'}, 'layer{stage1}.{block}',
        {**_BLOCK, 'shortcut': 'shortcut.0'}),
    # Wide ResNets of github.com/xternalz/WideResNet-pytorch and of TRADES and its successors, which
    # make one block more than they use.
    'trades': Naming(
        functools.partial(_preactivation, deepmind=False),
        {'conv': 'conv1', 'norm': 'bn1', 'logits': 'fc'}, 'block{stage1}.layer.{block}',
        {**_BLOCK, 'shortcut': 'convShortcut'}, unused=('sub_block1',)),
    # Wide ResNets of deepmind-research/adversarial_robustness/pytorch.
    'deepmind': Naming(
        functools.partial(_preactivation, deepmind=True),
        {'conv': 'init_conv', 'norm': 'batchnorm', 'logits': 'logits'},
        'layer.{stage}.block.{block}',
        {'conv1': 'conv_0', 'norm1': 'batchnorm_0', 'conv2': 'conv_1', 'norm2': 'batchnorm_1',
         'shortcut': 'shortcut'}),
}
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean',
           'var': 'running_var'}
# Axes of PyTorch's array that become those of ours, by rank.
_AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}
# (mean, std) of an input normalisation whose constants are in the state_dict.
_NORMALISATIONS = (('means', 'sds'), ('mean', 'std'), ('mu', 'sigma'))


class _Leaf(NamedTuple):
  """A leaf of our tree: its path, and the shape that its array has in PyTorch."""

  path: tuple[str, ...]
  shape: tuple[int, ...]
  axes: tuple[int, ...]


def load(path, model, image_shape):
  """The variables of a Flax module, from a PyTorch checkpoint: `convert` of `files.read`.

  A normalisation that the checkpoint holds is not returned: see `normalisation`.
  """
  return convert(files.read(path), model, image_shape, path=path)


def convert(arrays, model, image_shape, *, path='weights'):
  """PyTorch's arrays as the variables of a Flax module.

  Names may have any prefix, the same for all, such as that of torch.nn.DataParallel or of a
  torch.nn.Sequential(normalisation, network). Every array must have its place and every leaf its
  array; only BatchNorm's num_batches_tracked and the constants of `normalisation` have none.

  What the names do not tell is not checked: the activation, and whether a pre-activation block's
  shortcut takes its input after BN and activation, as ours does, or before.

  Args:
    arrays: {name: array}, as `files.read` returns them.
    model: a module from `models.create`.
    image_shape: (height, width, channel).
    path: what errors call the arrays.

  Returns:
    {'params': ..., 'batch_stats': ...} as `models.init` returns them, of NumPy float32 arrays.

  Raises:
    UserError: no naming fits the module; a name is missing or is left over; an array has another
      shape, or is not of finite floating-point numbers.
  """
  naming, prefix, leaves = _match(arrays, model, image_shape, path)
  _check_names(arrays, leaves, _ignored(arrays, naming, prefix), path)
  flat = {leaf.path: _array(arrays[name], name, leaf, path) for name, leaf in leaves.items()}
  return {'params': {}, 'batch_stats': {}, **traverse_util.unflatten_dict(flat)}


def normalisation(arrays):
  """The input normalisation (images - mean) / std that a state_dict holds.

  Args:
    arrays: {name: array}, as `files.read` returns them.

  Returns:
    (mean, std), tuples with a number for each channel, from arrays called means and sds, mean and
    std, or mu and sigma; None if there are none, as in the code bases that do not save them.
  """
  names = _normalisation_names(arrays)
  return names and tuple(tuple(np.ravel(arrays[name]).astype(float).tolist()) for name in names)


def num_classes(arrays, model, image_shape, *, path='weights'):
  """The number of classes of PyTorch's arrays: the rows of the last layer's weight.

  Args:
    arrays: {name: array}, as `files.read` returns them.
    model: a module from `models.create`, of any number of classes.
    image_shape: (height, width, channel).
    path: what errors call the arrays.

  Raises:
    UserError: no naming fits the module, or there is no such array.
  """
  leaves = _match(arrays, model, image_shape, path)[2]
  name = next(name for name, leaf in leaves.items() if leaf.path == ('params', HEAD, 'kernel'))
  if name not in arrays:
    raise UserError(f'{path}: {name}, the weight of the last layer, is missing')
  return len(np.atleast_1d(arrays[name]))


def _normalisation_names(arrays):
  for mean, std in _NORMALISATIONS:
    for name in arrays:
      prefix, dot, last = name.rpartition('.')
      if last == mean and f'{prefix}{dot}{std}' in arrays:
        return name, f'{prefix}{dot}{std}'
  return None


def _match(arrays, model, image_shape, path):
  """The naming and the prefix under which most names are found; {PyTorch's name: _Leaf}."""
  template = _template(model, image_shape)
  matches = []
  for naming in NAMINGS.values():
    if naming.fits(model):
      leaves = {_torch_name(naming, leaf): leaf for leaf in template}
      prefix, found = _prefix(arrays, leaves)
      matches.append((found, naming, prefix, leaves))
  if not matches:
    raise UserError(f'{path}: there is no PyTorch naming of a {type(model).__name__} like the '
                    f'model; those of {", ".join(NAMINGS)} are allowed')
  found, naming, prefix, leaves = max(matches, key=lambda match: match[0])
  if not found:
    raise UserError(f'{path}: it has {_some(arrays)}, and no array of this {type(model).__name__};'
                    f' {_some(leaves)} are allowed')
  return naming, prefix, {prefix + name: leaf for name, leaf in leaves.items()}


def _template(model, image_shape):
  """The _Leafs of a module."""
  variables = jax.eval_shape(
      functools.partial(model.init, train=False), keys.root(0),
      jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
  leaves = []
  for place, leaf in traverse_util.flatten_dict(variables).items():
    axes = _AXES[leaf.ndim]
    shape = [leaf.shape[axes.index(axis)] for axis in range(leaf.ndim)]
    leaves.append(_Leaf(place, tuple(shape), axes))
  return leaves


def _torch_name(naming, leaf):
  _, *module, last = leaf.path
  return f'{naming.module(module)}.{_LEAVES[last]}'


def _prefix(arrays, leaves):
  """The prefix under which most of the names `leaves` are in `arrays`, and how many are."""
  found = collections.Counter()
  for name in arrays:
    starts = [0, *(dot.end() for dot in re.finditer(r'\.', name))]
    found.update(name[:start] for start in starts if name[start:] in leaves)
  return found.most_common(1)[0] if found else ('', 0)


def _ignored(arrays, naming, prefix):
  """The names that need no place."""
  unused = tuple(f'{prefix}{module}.' for module in naming.unused)
  return {*(_normalisation_names(arrays) or ()),
          *(name for name in arrays if name.rpartition('.')[2] == 'num_batches_tracked'),
          *(name for name in arrays if name.startswith(unused))}


def _check_names(arrays, leaves, ignored, path):
  missing = [name for name in leaves if name not in arrays]
  if missing:
    shape = list(leaves[missing[0]].shape)
    raise UserError(f'{path}: {_some(missing)} {"is" if len(missing) == 1 else "are"} missing; '
                    f'the model needs {missing[0]} with the shape {shape}')
  left_over = [name for name in arrays if name not in leaves and name not in ignored]
  if left_over:
    raise UserError(f'{path}: {_some(left_over)} {"has" if len(left_over) == 1 else "have"} no '
                    f'place in the model; its {len(leaves)} arrays alone are allowed')


def _some(names):
  """The first names, and how many there are."""
  first, rest = ', '.join(list(names)[:2]), len(names) - 2
  return f'{first} and {rest} more' if rest > 0 else first


def _array(array, name, leaf, path):
  """The array of a leaf of ours, checked."""
  if array.shape != leaf.shape:
    raise UserError(f'{path}: {name} has the shape {list(array.shape)}; {list(leaf.shape)} is '
                    'allowed')
  if not jnp.issubdtype(array.dtype, jnp.floating):  # which knows bfloat16
    raise UserError(f'{path}: {name} is of type {array.dtype}; floating-point numbers are allowed')
  with np.errstate(over='ignore'):
    converted = np.ascontiguousarray(array.transpose(leaf.axes), np.float32)
  if not np.isfinite(converted).all():
    raise UserError(f'{path}: {name} has entries that are not finite; finite float32 numbers are '
                    'allowed')
  return converted
