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

  def array(self, path):
    """PyTorch's name of the array at `path` in our tree: (collection, [block,] layer, leaf)."""
    _, *blocks, layer, leaf = path
    if not blocks:
      return f'{self.layers[layer]}.{_LEAVES[leaf]}'
    stage, block = map(int, re.fullmatch(r'stage(\d+)_block(\d+)', blocks[0]).groups())
    block = self.block.format(stage=stage - 1, stage1=stage, block=block - 1)
    return f'{block}.{self.block_layers[layer]}.{_LEAVES[leaf]}'


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


def convert(arrays, model, image_shape, *, path='weights'):
  """PyTorch's arrays as the variables of a Flax module.

  Names may have any prefix, the same for all, such as that of torch.nn.DataParallel or of a
  torch.nn.Sequential(normalisation, network). Every array must have its place and every leaf its
  array; only BatchNorm's num_batches_tracked and the constants of `normalisation` have none.

  What the names do not show is not checked: the activation, and whether a pre-activation block's
  shortcut takes its input after BN and activation, as ours does, or before.

  Args:
    arrays: {name: array}, as `files.read` returns them.
    model: a module from `models.create`.
    image_shape: (height, width, channel).
    path: what errors call the arrays.

  Returns:
    {'params': ..., 'batch_stats': ...} as `models.init` returns them, of NumPy float32 arrays.

  Raises:
    UserError: no naming fits the module; a name is missing or unknown; an array has another shape,
      or is not of finite floating-point numbers.
  """
  naming, prefix, leaves = _match(arrays, model, image_shape, path)
  missing = [name for name in leaves if name not in arrays]
  if missing:
    raise UserError(f'{path}: missing {_some(missing)}; {missing[0]} must have the shape '
                    f'{list(leaves[missing[0]].shape)}')
  unused = tuple(f'{prefix}{module}.' for module in naming.unused)
  known = {*leaves, *(_normalisation_names(arrays) or ())}
  unknown = [name for name in arrays if name not in known and not name.startswith(unused)
             and name.rpartition('.')[2] != 'num_batches_tracked']
  if unknown:
    raise UserError(f'{path}: the model, which has {len(leaves)} arrays, has no place for '
                    f'{_some(unknown)}')
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
    raise UserError(f'{path}: missing {name}, the weight of the last layer')
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
  leaves, matches = _leaves(model, image_shape), []
  for naming in NAMINGS.values():
    if naming.fits(model):
      named_leaves = {naming.array(leaf.path): leaf for leaf in leaves}
      matches.append((*_prefix(arrays, named_leaves), naming, named_leaves))
  if not matches:
    raise UserError(f'{path}: the layers of a {type(model).__name__} have no PyTorch names; those '
                    f'of {", ".join(NAMINGS)} are known')
  prefix, number, naming, named_leaves = max(matches, key=lambda match: match[1])
  if not number:
    raise UserError(f'{path}: a {type(model).__name__} must have {_some(named_leaves)}, got '
                    f'{_some(arrays)}')
  return naming, prefix, {prefix + name: leaf for name, leaf in named_leaves.items()}


def _leaves(model, image_shape):
  """The _Leafs of a module."""
  variables = jax.eval_shape(
      functools.partial(model.init, train=False), keys.root(0),
      jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
  leaves = []
  for path, leaf in traverse_util.flatten_dict(variables).items():
    axes = _AXES[leaf.ndim]
    shape = [leaf.shape[axes.index(axis)] for axis in range(leaf.ndim)]
    leaves.append(_Leaf(path, tuple(shape), axes))
  return leaves


def _prefix(arrays, names):
  """The prefix under which most of `names` are in `arrays`, and how many are."""
  counts = collections.Counter()
  for name in arrays:
    starts = [0, *(dot.end() for dot in re.finditer(r'\.', name))]
    counts.update(name[:start] for start in starts if name[start:] in names)
  return counts.most_common(1)[0] if counts else ('', 0)


def _some(names):
  """The first names, and how many there are."""
  first, rest = ', '.join(list(names)[:2]), len(names) - 2
  return f'{first} and {rest} more' if rest > 0 else first


def _array(array, name, leaf, path):
  """The array of a leaf of ours, checked."""
  if array.shape != leaf.shape:
    raise UserError(f'{path}: {name} must have the shape {list(leaf.shape)}, got '
                    f'{list(array.shape)}')
  if not jnp.issubdtype(array.dtype, jnp.floating):  # which knows bfloat16
    raise UserError(f'{path}: {name} must be of floating-point numbers, got {array.dtype}')
  with np.errstate(over='ignore'):
    converted = np.ascontiguousarray(array.transpose(leaf.axes), np.float32)
  if not np.isfinite(converted).all():
    raise UserError(f'{path}: {name} must be of finite float32 numbers')
  return converted
