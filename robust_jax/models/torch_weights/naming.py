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
from robust_jax.models import HEAD, MODELS, efficientnet, preact_resnet, resnet


class Naming(NamedTuple):
  """PyTorch's names for the layers of a family of our networks.

  Attributes:
    fits: Flax module -> whether it is of that family.
    layers: {our name: PyTorch's} of the layers outside of the residual blocks.
    block: PyTorch's name of a block; {stage} and {block} count from 0, {stage1} from 1. Without a
      stage in it all blocks are of the first.
    block_layers: {our name: PyTorch's} of the layers of a block.
    unused: modules that take no part in the network, but have weights in its checkpoints.
  """

  fits: Callable[[nn.Module], bool]
  layers: dict[str, str]
  block: str
  block_layers: dict[str, str]
  unused: tuple[str, ...] = ()

  @property
  def kernels(self):
    """Matches the names of the blocks' first convolutions: groups of the prefix, stage, block."""
    name = re.escape(f'{self.block}.{self.block_layers["conv1"]}.weight')
    return re.compile(r'(.*\.)?' + re.sub(r'\\{(?:stage1?|block)\\}', r'(\\d+)', name))

  def array(self, path):
    """PyTorch's name of the array at `path` in our tree: (collection, [block,] layer, leaf)."""
    _, *blocks, layer, leaf = path
    if not blocks:
      return f'{self.layers[layer]}.{_LEAVES[leaf]}'
    stage, block = map(int, re.fullmatch(r'stage(\d+)_block(\d+)', blocks[0]).groups())
    block = self.block.format(stage=stage - 1, stage1=stage, block=block - 1)
    return f'{block}.{self.block_layers[layer]}.{_LEAVES[leaf]}'


def _resnet(model):
  return isinstance(model, resnet.ResNet)


def _preactivation(model, forms):
  """Which form a network has decides what its weights compute, though not always their names."""
  return isinstance(model, preact_resnet.PreActResNet) and model.form in forms


_BLOCK = {'conv1': 'conv1', 'norm1': 'bn1', 'conv2': 'conv2', 'norm2': 'bn2'}
_BOTTLENECK = {**_BLOCK, 'conv3': 'conv3', 'norm3': 'bn3'}
_DEEPMIND = {'norm': 'batchnorm', 'logits': 'logits'}
NAMINGS = {
    # torchvision's ResNets; the CIFAR ResNets of github.com/bearpaw/pytorch-classification, which
    # github.com/locuslab/smoothing and its successors use.
    'torchvision': Naming(
        _resnet, {'conv': 'conv1', 'norm': 'bn1', 'logits': 'fc'}, 'layer{stage1}.{block}',
        {**_BOTTLENECK, 'shortcut': 'downsample.0', 'shortcut_norm': 'downsample.1'}),
    # ResNets of github.com/kuangliu/pytorch-cifar, which github.com/MadryLab/robustness and
    # RobustBench have for CIFAR.
    'pytorch-cifar': Naming(
        _resnet, {'conv': 'conv1', 'norm': 'bn1', 'logits': 'linear'}, 'layer{stage1}.{block}',
        {**_BOTTLENECK, 'shortcut': 'shortcut.0', 'shortcut_norm': 'shortcut.1'}),
    # Its PreActResNets, with the last BatchNorm of its successors.
    'pytorch-cifar (PreActResNet)': Naming(
        functools.partial(_preactivation, forms=('zagoruyko', 'wong')),
        {'conv': 'conv1', 'norm': 'bn', 'logits': 'linear'}, 'layer{stage1}.{block}',
        {**_BLOCK, 'shortcut': 'shortcut.0'}),
    # Wide ResNets of github.com/xternalz/WideResNet-pytorch and of TRADES and its successors, which
    # make one block more than they use.
    'trades': Naming(
        functools.partial(_preactivation, forms=('zagoruyko',)),
        {'conv': 'conv1', 'norm': 'bn1', 'logits': 'fc'}, 'block{stage1}.layer.{block}',
        {**_BLOCK, 'shortcut': 'convShortcut'}, unused=('sub_block1',)),
    # Wide ResNets of deepmind-research/adversarial_robustness/pytorch, and its PreActResNets.
    'deepmind': Naming(
        functools.partial(_preactivation, forms=('deepmind',)),
        {'conv': 'init_conv', **_DEEPMIND}, 'layer.{stage}.block.{block}',
        {'conv1': 'conv_0', 'norm1': 'batchnorm_0', 'conv2': 'conv_1', 'norm2': 'batchnorm_1',
         'shortcut': 'shortcut'}),
    'deepmind (PreActResNet)': Naming(
        functools.partial(_preactivation, forms=('deepmind',)),
        {'conv': 'conv_2d', **_DEEPMIND}, 'layer_{stage}.{block}',
        {'conv1': 'conv_2d_1', 'norm1': 'batchnorm_0', 'conv2': 'conv_2d_2',
         'norm2': 'batchnorm_1', 'shortcut': 'shortcut'}),
    # EfficientNet-Lites of github.com/ml-illustrated/EfficientNet-Lite-PyTorch.
    'efficientnet-lite': Naming(
        lambda model: isinstance(model, efficientnet.EfficientNetLite),
        {'conv': '_conv_stem', 'norm': '_bn0', 'last_conv': '_conv_head', 'last_norm': '_bn1',
         'logits': '_fc'}, '_blocks.{block}',
        {'conv1': '_expand_conv', 'norm1': '_bn0', 'conv2': '_depthwise_conv', 'norm2': '_bn1',
         'conv3': '_project_conv', 'norm3': '_bn2'}),
}
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean',
           'var': 'running_var'}
# Axes of PyTorch's array that become those of ours, by rank.
_AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}
# Networks of MODELS, and fields of them that make another one.
_NAMED = (('resnet20', {}), ('resnet56', {}), ('resnet110', {}), ('resnet18', {}), ('resnet50', {}),
          ('resnet18', {'stem': 'cifar'}), ('resnet50', {'stem': 'cifar'}),
          ('preact_resnet18', {}), ('preact_resnet18', {'final_norm': False}),
          ('preact_resnet18', {'form': 'deepmind'}))
# Names of the constants of an input normalisation that are in the state_dict.
_MEANS, _STDS = ('means', 'mean', 'mu', 'new_mean'), ('sds', 'std', 'sigma', 'new_std')
# Arrays that count steps: of BatchNorm, and of torch.optim.swa_utils.AveragedModel.
_COUNTERS = ('num_batches_tracked', 'n_averaged')


class _Leaf(NamedTuple):
  """A leaf of our tree: its path, and the shape that its array has in PyTorch."""

  path: tuple[str, ...]
  shape: tuple[int, ...]
  axes: tuple[int, ...]


def convert(arrays, model, image_shape, *, path='weights', part=None):
  """PyTorch's arrays as the variables of a Flax module.

  Names may have any prefix, the same for all, such as that of torch.nn.DataParallel or of a
  torch.nn.Sequential(normalisation, network). Every array must have its place and every leaf its
  array; only counters of BatchNorm and of averages, the constants of `normalisation`, and a second
  copy of the network under another prefix have none.

  What the names do not show is not checked: the activation, and whether a pre-activation block's
  shortcut takes its input after BN and activation or before (form='wong').

  Args:
    arrays: {name: array}, as `files.read` returns them.
    model: a module from `models.create`.
    image_shape: (height, width, channel).
    path: what errors call the arrays.
    part: the start of the names, without the dot after it, where two networks are among them.

  Returns:
    {'params': ..., 'batch_stats': ...} as `models.init` returns them, of NumPy float32 arrays.

  Raises:
    UserError: no naming fits the module; a name is missing or unknown; two prefixes have networks
      that differ; an array has another shape, or is not of finite floating-point numbers.
  """
  leaves = _match(arrays, model, image_shape, path, part)
  flat = {leaf.path: _array(arrays, name, leaf, path, model) for name, leaf in leaves.items()}
  return {'params': {}, 'batch_stats': {}, **traverse_util.unflatten_dict(flat)}


def normalisation(arrays, *, path='weights'):
  """The input normalisation (images - mean) / std that a state_dict holds.

  Args:
    arrays: {name: array}, as `files.read` returns them.
    path: what errors call the arrays.

  Returns:
    (mean, std), tuples with a number for each channel, from arrays called means, mean, mu or
    new_mean and sds, std, sigma or new_std; None if there are none, as in the code bases that do
    not save them.

  Raises:
    UserError: there are several, and they differ.
  """
  found = {names: tuple(tuple(np.ravel(arrays[name]).astype(float).tolist()) for name in names)
           for names in _normalisations(arrays)}
  if len(set(found.values())) > 1:
    raise UserError(f'{path}: must hold one normalisation, has several that differ: '
                    + ', '.join(mean for mean, _ in found))
  return next(iter(found.values()), None)


def num_classes(arrays, model, image_shape, *, path='weights', part=None):
  """The number of classes of PyTorch's arrays: the rows of the last layer's weight.

  Args:
    arrays: {name: array}, as `files.read` returns them.
    model: a module from `models.create`, of any number of classes.
    image_shape: (height, width, channel).
    path: what errors call the arrays.
    part: as of `convert`.

  Raises:
    UserError: the names are not those of the module, as of `convert`.
  """
  leaves = _match(arrays, model, image_shape, path, part)
  name = next(name for name, leaf in leaves.items() if leaf.path == ('params', HEAD, 'kernel'))
  return len(np.atleast_1d(arrays[name]))


def _normalisations(arrays):
  """The names [(mean, std), ...] of the normalisations among the arrays."""
  names = []
  for name in arrays:
    prefix, dot, last = name.rpartition('.')
    stds = [std for std in _STDS if f'{prefix}{dot}{std}' in arrays]
    if last in _MEANS and stds:
      names.append((name, f'{prefix}{dot}{stds[0]}'))
  return names


def _readable():
  """The entries of `MODELS` that a naming fits."""
  made = {name: make(2) for name, make in MODELS.items() if name != 'external'}
  return [name for name, model in made.items()
          if any(naming.fits(model) for naming in NAMINGS.values())]


class _Match(NamedTuple):
  """A naming, and a prefix under which arrays have names of it.

  Attributes:
    leaves: {PyTorch's name without the prefix: _Leaf}.
    number: how many of these names there are.
  """

  prefix: str
  naming: Naming
  leaves: dict
  number: int


def _match(arrays, model, image_shape, path, part):
  """{PyTorch's name: _Leaf} of the module: all of them are there, and nothing else is."""
  within = [name for name in arrays if part is not None and name.startswith(f'{part}.')] or arrays
  matches, leaves = [], _leaves(model, image_shape)
  for naming in NAMINGS.values():
    if naming.fits(model):
      named = {naming.array(leaf.path): leaf for leaf in leaves}
      matches += [_Match(prefix, naming, named, number)
                  for prefix, number in _prefixes(within, named).most_common()]
  if not any(naming.fits(model) for naming in NAMINGS.values()):
    raise UserError(f'{path}: config.model.name must be one of {", ".join(_readable())}, whose '
                    f'layers have known names in PyTorch, got a {type(model).__name__}')
  if not matches:
    raise UserError(f'{path}: a {type(model).__name__} must have {_some(named)}, got '
                    f'{_some(arrays)}{_other(arrays, model)}')
  best = max(matches, key=lambda match: match.number)
  found = {best.prefix + name: leaf for name, leaf in best.leaves.items()}
  missing = [name for name in found if name not in arrays]
  if missing:
    raise UserError(f'{path}: missing {_some(missing)}; {missing[0]} must have the shape '
                    f'{list(found[missing[0]].shape)}{_other(arrays, model)}')
  prefixes = [match.prefix for match in matches
              if (match.naming, match.number) == (best.naming, best.number)]
  _check_same(arrays, best.leaves, prefixes, path)
  unused = tuple(f'{best.prefix}{module}.' for module in best.naming.unused)
  known = {*(name for names in _normalisations(arrays) for name in names),
           *(prefix + name for prefix in prefixes for name in best.leaves)}
  unknown = [name for name in within if name not in known and not name.startswith(unused)
             and name.rpartition('.')[2] not in _COUNTERS]
  if unknown:
    raise UserError(f'{path}: the model, which has {len(found)} arrays, has no place for '
                    f'{_some(unknown)}{_other(arrays, model)}')
  return found


def _check_same(arrays, names, prefixes, path):
  """Raises UserError if the networks under the prefixes, of the same names, differ."""
  first, *others = prefixes
  for prefix in others:
    if not all(np.array_equal(arrays[first + name], arrays[prefix + name]) for name in names):
      raise UserError(f'{path}: config.weights_part says which of its networks is read: one of '
                      + ', '.join(repr(prefix.removesuffix('.')) for prefix in prefixes))


def _other(arrays, model):
  """'; its arrays are those of ...', if that is known and another network; else ''."""
  found = _size_of_arrays(arrays)
  return f'; its arrays are those of {_called(found)}' if found not in (None, _size(model)) else ''


class _Size(NamedTuple):
  """What tells the ResNets that have namings from each other.

  Attributes:
    kind: 'v1', 'preact' or 'deepmind'.
    stem: channels and side of the first convolution's kernel.
    width: channels of the first block's first convolution.
    norm: whether there is a BatchNorm outside of the blocks.
  """

  kind: str
  bottleneck: bool
  num_blocks: tuple[int, ...]
  stem: tuple[int, int]
  width: int
  norm: bool


def _size(model):
  if not isinstance(model, resnet.ResNet | preact_resnet.PreActResNet):
    return None
  if _resnet(model):
    stem = (model.width, 7 if model.large_images else 3)
    return _Size('v1', model.bottleneck, model.num_blocks, stem, model.width, True)
  kind = 'deepmind' if model.form == 'deepmind' else 'preact'
  return _Size(kind, False, model.num_blocks, (model.stem, 3), model.width, model.final_norm)


def _size_of_arrays(arrays):
  """The _Size of the ResNet that has these arrays; None if no naming of one has them."""
  for label, naming in NAMINGS.items():
    if '{stage' not in naming.block:
      continue
    kernels = list(filter(None, map(naming.kernels.fullmatch, arrays)))
    prefix = (kernels[0][1] or '') if kernels else ''
    conv, norm, logits = (f'{prefix}{naming.layers[layer]}.weight'
                          for layer in ('conv', 'norm', 'logits'))
    is_v1 = naming.fits is _resnet
    if kernels and conv in arrays and logits in arrays and (norm in arrays or not is_v1):
      blocks = collections.Counter(int(match[2]) for match in kernels if match[1] == kernels[0][1])
      return _Size(
          'v1' if is_v1 else 'deepmind' if label.startswith('deepmind') else 'preact',
          is_v1 and kernels[0][0].replace('conv1', 'conv3') in arrays,
          tuple(number for _, number in sorted(blocks.items())),
          (len(arrays[conv]), np.shape(arrays[conv])[-1]), len(arrays[kernels[0][0]]),
          norm in arrays)
  return None


def _called(size):
  """What a config calls the network of a _Size."""
  for name, fields in _NAMED:
    if _size(MODELS[name](2, **fields)) == size:
      break
  else:
    blocks, *others = set(size.num_blocks)
    if size.kind == 'v1' or others or len(size.num_blocks) != 3:
      return f'a ResNet of {", ".join(map(str, size.num_blocks))} blocks'
    name, fields = 'wide_resnet', {'depth': 6 * blocks + 4, 'width': size.width // 16}
    fields |= {'form': 'deepmind'} if size.kind == 'deepmind' else {}
  values = ', '.join(f'{field}={value!r}' for field, value in fields.items())
  return f'{name} ({values})' if values else name


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


def _prefixes(arrays, names):
  """{prefix: how many of `names` are in `arrays` under it}."""
  counts = collections.Counter()
  for name in arrays:
    starts = [0, *(dot.end() for dot in re.finditer(r'\.', name))]
    counts.update(name[:start] for start in starts if name[start:] in names)
  return counts


def _some(names):
  """The first names, and how many there are."""
  first, rest = ', '.join(list(names)[:2]), len(names) - 2
  return f'{first} and {rest} more' if rest > 0 else first


def _array(arrays, name, leaf, path, model):
  """The array of a leaf of ours, checked."""
  array = arrays[name]
  if array.shape != leaf.shape:
    raise UserError(f'{path}: {name} must have the shape {list(leaf.shape)}, got '
                    f'{list(array.shape)}{_other(arrays, model)}')
  if not jnp.issubdtype(array.dtype, jnp.floating):  # which knows bfloat16
    raise UserError(f'{path}: {name} must be of floating-point numbers, got {array.dtype}')
  with np.errstate(over='ignore'):
    converted = np.ascontiguousarray(array.transpose(leaf.axes), np.float32)
  if not np.isfinite(converted).all():
    raise UserError(f'{path}: {name} must be of finite float32 numbers')
  return converted
