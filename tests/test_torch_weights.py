"""PyTorch's checkpoints against what PyTorch reads and computes (tests/golden)."""

import functools
import io
import json
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from golden import seeded
from PIL import Image

from configs import photo
from robust_jax import keys, models, named
from robust_jax.data import decode
from robust_jax.errors import UserError
from robust_jax.models import resnet, torch_weights

GOLDEN = Path(__file__).parent / 'golden'
FORMATS = ['zip.pth', 'legacy.pth', '.safetensors']


def golden(kind, stem='torch'):
  return GOLDEN / (f'{stem}{kind}' if kind.startswith('.') else f'{stem}_{kind}')


def apply(model, variables, images):
  """Logits, in one program: without LLVM's optimisation it compiles faster than layer by layer."""
  return jax.jit(functools.partial(model.apply, train=False))(variables, images)


def refused(message, function, *args, **kwargs):
  """Whether the call raises a UserError of one line."""
  with pytest.raises(UserError, match=message) as raised:
    function(*args, **kwargs)
  return '\n' not in str(raised.value)


# Networks.


def torch_case(name):
  """(PyTorch's state_dict, images, its logits in float64) of a network of the golden file."""
  case = json.loads((GOLDEN / 'torch_logits.json').read_text())[name]
  arrays = {key: seeded.weight(key, tuple(shape)) for key, shape in case['shapes'].items()}
  return arrays, seeded.images((2, case['side'], case['side'], 3)), np.array(case['logits'])


@pytest.mark.parametrize(('case', 'kwargs'), [
    ('resnet20', {}),
    ('resnet56', {}),
    ('resnet110', {}),
    ('resnet50', {}),
    ('resnet18', {}),
    ('resnet18 of pytorch-cifar', {'stem': 'cifar'}),
    ('resnet50 of pytorch-cifar', {'stem': 'cifar'}),
    ('preact_resnet18', {}),
    ('preact_resnet18 without final norm', {'final_norm': False}),
    ('preact_resnet18 of wong', {'form': 'wong', 'final_norm': False}),
    ('preact_resnet18 of deepmind', {'form': 'deepmind', 'activation': 'swish'}),
    ('wide_resnet', {'depth': 16, 'width': 2}),
    ('wide_resnet of deepmind',
     {'depth': 16, 'width': 2, 'form': 'deepmind', 'activation': 'swish'}),
    ('efficientnet_lite0', {}),
])
def test_logits_equal_those_of_pytorch(case, kwargs):
  arrays, images, expected = torch_case(case)
  model = models.create(case.split()[0], expected.shape[1], **kwargs)
  variables = torch_weights.convert(arrays, model, images.shape[1:])
  np.testing.assert_allclose(apply(model, variables, images), expected, rtol=1e-5, atol=1e-5)


def test_published_efficientnet_lite0_classifies_photographs():
  """Resized as its authors do; both misses are cars for a jeep."""
  config = photo.get_config()
  try:
    weights, photograph = (named.file(text, 'config') for text in (
        config.weights, config.attack_image.file))
  except UserError as error:
    pytest.skip(str(error))
  model = models.create('efficientnet_lite0', 1000)
  variables = torch_weights.load(weights, model, (224, 224, 3)).variables
  images, labels = [], []
  for path in sorted(photograph.parent.glob('imagenet_*.jpg')):
    image = decode.decode(path.read_bytes(), 3).resize((256, 256), Image.Resampling.BICUBIC)
    images.append(np.asarray(image.crop((16, 16, 240, 240)), np.float32) / 255)
    labels.append(int(path.stem.rpartition('_')[2]))
  logits_fn = models.logits_fn(model, variables, mean=127 / 255, std=128 / 255)
  logits = jax.jit(lambda f, x: f(x))(logits_fn, np.stack(images))
  predicted = np.argmax(np.asarray(logits), axis=-1)
  assert len(labels) == 20
  assert np.flatnonzero(predicted != labels).tolist() == [6, 7]


def test_the_tree_is_that_of_init():
  arrays, images, expected = torch_case('resnet20')
  model = models.create('resnet20', 10)
  fresh = jax.eval_shape(lambda: model.init(keys.root(0), jnp.zeros((1, 32, 32, 3)), train=False))
  converted = torch_weights.convert(arrays, model, (32, 32, 3))
  describe = lambda leaf: (leaf.shape, leaf.dtype)
  assert jax.tree.map(describe, converted) == jax.tree.map(describe, fresh)


@pytest.fixture(scope='module')
def small():
  """ResNet-8 of width 4, that of the golden checkpoints, for (8, 8, 3)."""
  return resnet.ResNet(5, (1, 1, 1), width=4)


@pytest.fixture(scope='module')
def small_arrays():
  """Its weights under their bare names."""
  return {name.removeprefix('1.module.'): array
          for name, array in torch_weights.read(golden('zip.pth')).items()
          if name.startswith('1.')}


@pytest.mark.parametrize('kind', FORMATS)
def test_a_checkpoint_of_the_smoothing_code_bases(kind, small):
  arrays = torch_weights.read(golden(kind))
  mean, std = torch_weights.normalisation(arrays)
  np.testing.assert_allclose([mean, std], [[0.4, 0.5, 0.6], [0.25, 0.5, 0.2]], rtol=1e-6)
  images = (seeded.images((2, 8, 8, 3)) - np.float32(mean)) / np.float32(std)
  logits = apply(small, torch_weights.convert(arrays, small, (8, 8, 3)), images)
  expected = json.loads((GOLDEN / 'torch_resnet8.json').read_text())
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('prefix', ['', '1.', '1.module.', 'module.', 'module.1.', 'conv1.'])
def test_any_prefix(prefix, small, small_arrays):
  plain = torch_weights.convert(small_arrays, small, (8, 8, 3))
  prefixed = {prefix + name: array for name, array in small_arrays.items()}
  found = torch_weights.convert(prefixed, small, (8, 8, 3))
  jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_half_precision_becomes_float32(small, small_arrays):
  half = {name: array.astype(jnp.bfloat16) for name, array in small_arrays.items()}
  kernel = torch_weights.convert(half, small, (8, 8, 3))['params']['conv']['kernel']
  assert kernel.dtype == np.float32
  weight = np.float32(half['conv1.weight'])
  assert kernel[2, 1, 0, 3] == weight[3, 0, 2, 1]


@pytest.mark.parametrize(('means', 'sds', 'shape'), [
    ('0.means', '0.sds', (3,)), ('mean', 'std', (3, 1, 1)),
    ('module.mu', 'module.sigma', (1, 3, 1, 1)), ('mu', 'std', (3, 1, 1)),
    ('module.normalizer.new_mean', 'module.normalizer.new_std', (3, 1, 1))])
def test_normalisation_is_found(means, sds, shape):
  arrays = {means: np.full(shape, 0.5, np.float32), sds: np.full(shape, 0.25, np.float32),
            'bn1.running_mean': np.zeros(4)}
  assert torch_weights.normalisation(arrays) == ((0.5,) * 3, (0.25,) * 3)
  other = {f'attacker.{means}': arrays[means], f'attacker.{sds}': arrays[sds]}
  assert torch_weights.normalisation(arrays | other) == ((0.5,) * 3, (0.25,) * 3)
  other[f'attacker.{means}'] = np.full(shape, 0.4)
  assert refused(f'FILE: .*several that differ: {means}, attacker', torch_weights.normalisation,
                 arrays | other, path='FILE')
  del arrays[sds]
  assert torch_weights.normalisation(arrays) is None


def test_the_layout_of_robustness(small, small_arrays):
  """MadryLab's: the network twice, and its normalisation twice."""
  plain = torch_weights.convert(small_arrays, small, (8, 8, 3))
  arrays = {f'module.{prefix}new_{name}': np.full((3, 1, 1), value, np.float32)
            for prefix in ('normalizer.', 'attacker.normalize.')
            for name, value in (('mean', 0.5), ('std', 0.25))}
  arrays |= {f'module.{prefix}model.{name}': array for prefix in ('', 'attacker.')
             for name, array in small_arrays.items()}
  found = torch_weights.convert(arrays, small, (8, 8, 3))
  jax.tree.map(np.testing.assert_array_equal, found, plain)
  assert torch_weights.normalisation(arrays) == ((0.5,) * 3, (0.25,) * 3)


def test_an_average_counts_its_steps(small, small_arrays):
  """The state_dict of torch.optim.swa_utils.AveragedModel."""
  arrays = {'n_averaged': np.array(7)} | {f'module.{name}': array
                                          for name, array in small_arrays.items()}
  torch_weights.convert(arrays, small, (8, 8, 3))


def test_which_of_two_networks(small, small_arrays):
  averaged = {name: array + 1 if name == 'fc.bias' else array
              for name, array in small_arrays.items()}
  arrays = {f'{prefix}.{name}': array for prefix, network in
            (('model', small_arrays), ('ema.module', averaged)) for name, array in network.items()}
  convert = lambda **kwargs: torch_weights.convert(arrays, small, (8, 8, 3), **kwargs)
  for function in (convert, functools.partial(
      torch_weights.num_classes, arrays, small, (8, 8, 3))):
    assert refused("FILE: config.weights_part .*: one of 'model', 'ema.module'", function,
                   path='FILE')
  bias = {part: convert(part=part)['params']['logits']['bias'] for part in ('model', 'ema')}
  np.testing.assert_array_equal(bias['ema'], bias['model'] + 1)
  del arrays['ema.module.fc.bias']
  assert refused('missing ema.module.fc.bias', convert, part='ema')


@pytest.mark.parametrize(('removed', 'added', 'message'), [
    ('layer2.0.conv1.weight', {}, r'missing (layer2.0.conv1.weight); \1 .*\[8, 4, 3, 3\]'),
    ('bn1.', {}, 'missing bn1.*, bn1.* and 2 more; bn1'),
    (None, {'extra': np.zeros(3)}, 'no place for extra$'),
    (None, {'1.mean': np.zeros(3)}, 'no place for 1.mean$'),
    (None, {'fc.weight': np.zeros((10, 16), np.float32)}, r'fc.weight .*\[5, 16\], got \[10, 16\]'),
    (None, {'fc.bias': np.zeros(5, np.int64)}, 'fc.bias .*floating-point.*, got int64'),
    (None, {'fc.bias': np.full(5, np.nan, np.float32)}, 'fc.bias .*finite'),
    (None, {'fc.bias': np.full(5, 1e60)}, 'fc.bias .*finite'),
    ('', {'a': np.zeros(1)}, 'a ResNet must have .*, got a$'),
    ('fc.weight', {}, r'missing fc.weight; .*\[5, 16\]'),
])
def test_arrays_that_do_not_fit(removed, added, message, small, small_arrays):
  arrays = {name: array for name, array in small_arrays.items()
            if removed is None or not name.startswith(removed)}
  assert refused(f'^FILE: .*{message}', torch_weights.convert, {**arrays, **added}, small,
                 (8, 8, 3), path='FILE')


@pytest.mark.parametrize(('name', 'image_shape', 'message'), [
    ('resnet20', (8, 8, 3), r'missing 1.module.layer1.1.bn1.*, .* 58 more'),
    (None, (8, 8, 1), r'conv1.weight .*\[4, 1, 3, 3\], got \[4, 3, 3, 3\]'),
    ('lenet', (28, 28, 1), 'config.model.name .*resnet20, .*preact_resnet18, .*a CNN$'),
    ('linear', (8, 8, 1), 'config.model.name .*resnet20, .*wide_resnet, .*an? MLP'),
])
def test_other_architectures_and_images(name, image_shape, message, small):
  model = models.create(name, 5) if name else small
  assert refused(message, torch_weights.convert, torch_weights.read(golden('zip.pth')), model,
                 image_shape)


def test_the_models_that_can_be_read_are_named(small_arrays):
  with pytest.raises(UserError) as raised:
    torch_weights.convert(small_arrays, models.create('vgg', 5), (32, 32, 3))
  named_there = str(raised.value).partition('one of ')[2].partition(', whose')[0].split(', ')
  page = (Path(__file__).parents[1] / 'docs' / 'models.md').read_text()
  unread = set(re.findall('`(.*?)`', re.search('PyTorch weights cannot be read of (.*?);', page,
                                               re.DOTALL)[1]))
  assert {'linear', 'vgg', 'external'} <= unread
  assert set(named_there) == set(models.MODELS) - unread


@pytest.mark.parametrize(('case', 'name', 'kwargs', 'called'), [
    ('resnet50', 'resnet110', {}, r'resnet50'),
    ('resnet20', 'resnet56', {}, 'resnet20'),
    ('resnet56', 'resnet20', {}, 'resnet56'),
    ('resnet18 of pytorch-cifar', 'resnet18', {}, r"resnet18 \(stem='cifar'\)"),
    ('resnet50 of pytorch-cifar', 'preact_resnet18', {}, r"resnet50 \(stem='cifar'\)"),
    ('preact_resnet18', 'wide_resnet', {'depth': 10}, 'preact_resnet18'),
    ('preact_resnet18 without final norm', 'preact_resnet18', {},
     r'preact_resnet18 \(final_norm=False\)'),
    ('preact_resnet18 of deepmind', 'preact_resnet18', {}, r"preact_resnet18 \(form='deepmind'\)"),
    ('wide_resnet', 'wide_resnet', {'depth': 10, 'width': 2},
     r'wide_resnet \(depth=16, width=2\)'),
    ('wide_resnet', 'wide_resnet', {'depth': 16, 'width': 1},
     r'wide_resnet \(depth=16, width=2\)'),
    # Its padding differs, which its names show.
    ('wide_resnet of deepmind', 'wide_resnet', {'depth': 16, 'width': 2},
     r"wide_resnet \(depth=16, width=2, form='deepmind'\)"),
])
def test_the_weights_of_another_network_say_of_which(case, name, kwargs, called):
  arrays, images, _ = torch_case(case)
  model = models.create(name, 10, **kwargs)
  assert refused(f'FILE: .*; its arrays are those of {called}$', torch_weights.convert, arrays,
                 model, images.shape[1:], path='FILE')


# Files.


def expected_tensors():
  base = np.arange(24, dtype=np.float32).reshape(4, 6)
  return {
      'base': base, 'transposed': base.T, 'window': base[1:3, 1::2],
      'expanded': np.broadcast_to(base[0], (3, 6)), 'scalar': base[2, 3],
      'empty': np.zeros((0, 3), np.float32), 'parameter': base[3],
      'float64': np.array([0.1, -2.5]), 'float16': np.array([0.5, -2.5], np.float16),
      'bfloat16': np.array([[0.5, -2.5]], jnp.bfloat16), 'int64': np.array(-2**40),
      'int32': np.array([-7], np.int32), 'int16': np.array([-7], np.int16),
      'int8': np.array([-7], np.int8), 'uint8': np.array([200], np.uint8),
      'bool': np.array([True, False])}


@pytest.mark.parametrize('kind', FORMATS)
def test_tensors_of_all_types_and_strides(kind):
  found, expected = torch_weights.read(golden(kind, 'torch_tensors')), expected_tensors()
  assert found.keys() == expected.keys()
  for name, array in found.items():
    assert (array.shape, array.dtype) == (expected[name].shape, expected[name].dtype), name
    np.testing.assert_array_equal(array, expected[name])


def read_bytes(tmp_path, data, part=None):
  path = tmp_path / 'FILE'
  path.write_bytes(data)
  return torch_weights.read(path, part)


def legacy(saved, little_endian=True):
  """The bytes of an old checkpoint without storages."""
  parts = [0x1950A86A20F9469CFC6C, 1001, {'little_endian': little_endian}]
  return b''.join(pickle.dumps(part, 2) for part in parts) + saved + pickle.dumps([], 2)


def archive(files):
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as written:
    for name, data in files.items():
      written.writestr(name, data)
  return file.getvalue()


class Calls:
  """Pickles as a call of a function, which loading it would make."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('kind', FORMATS[:2])
def test_what_scripts_save_beside_a_state_dict_is_passed_over(kind):
  found = torch_weights.read(golden(kind, 'torch_objects'))
  assert set(found) == {'weight', 'bias'}
  np.testing.assert_array_equal(found['weight'], [[0, 1], [2, 3]])


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize(('function', 'name'), [
    (os.system, f'{os.name}.system'), (eval, 'eval'), (getattr, 'getattr'),
    (np.zeros, 'numpy.*zeros'), (pickle.loads, 'pickle.loads')])
def test_what_a_pickle_calls_is_not_run(function, name, protocol, tmp_path):
  touched = tmp_path / 'touched'
  command = {os.system: f'touch {touched}', eval: f'open({str(touched)!r}, "w")'}
  call = Calls(function, command.get(function, 'x'))
  for saved, message in ((call, f'got a .*{name}; '), ({'other': [call]}, 'got no tensors')):
    data = pickle.dumps(saved, protocol)
    for file in (legacy(data), archive({'archive/data.pkl': data})):
      assert refused(rf'FILE: .*{message}', read_bytes, tmp_path, file)
  if protocol >= 2:
    assert refused('FILE', read_bytes, tmp_path, pickle.dumps(call, protocol))
  assert not touched.exists()


@pytest.mark.parametrize('place', range(5))
def test_nor_in_the_first_pickles_of_an_old_file(place, tmp_path):
  parts = [0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}, {}, []]
  parts[place] = Calls(os.system, f'touch {tmp_path / "touched"}')
  data = b''.join(pickle.dumps(part, 2) for part in parts)
  assert refused('FILE', read_bytes, tmp_path, data)
  assert not (tmp_path / 'touched').exists()


@pytest.mark.parametrize('name', [b'torch._utils\n_rebuild_tensor_v2', b'collections\nOrderedDict',
                                  b'collections\ndefaultdict', b'torch\nFloatStorage',
                                  b'argparse\nNamespace'])
@pytest.mark.parametrize('state', [b'}(X\x08\x00\x00\x00__call__K\x01ub.',  # {'__call__': 1}, BUILD
                                   b'N}(X\x08\x00\x00\x00__call__K\x01u\x86b.'])  # as attributes
def test_what_a_pickle_may_ask_for_cannot_be_changed(name, state, tmp_path):
  assert refused('FILE', read_bytes, tmp_path, legacy(b'\x80\x02c' + name + b'\n' + state))
  assert torch_weights.read(golden('legacy.pth'))


@pytest.mark.parametrize('kind', FORMATS)
def test_a_truncated_file_is_a_user_error(kind, tmp_path):
  data = golden(kind, 'torch_tensors').read_bytes()
  for size in {0, 1, 8, 9, 20, 200, len(data) // 2, len(data) - 1}:
    assert refused('FILE', read_bytes, tmp_path, data[:size])


def test_a_flipped_bit_in_an_archive_is_a_user_error(tmp_path):
  data = bytearray(golden('zip.pth').read_bytes())
  place = data.index(torch_weights.read(golden('zip.pth'))['1.module.conv1.weight'].tobytes())
  data[place] ^= 1
  assert refused('FILE: is damaged, .*CRC', read_bytes, tmp_path, bytes(data))


# Pickles by hand, operation by operation, for what PyTorch does not write.


def integer(value):
  return b'J' + struct.pack('<i', value)


def integers(values):
  return b'(' + b''.join(map(integer, values)) + b't'


def text(value):
  return b'X' + struct.pack('<I', len(value)) + value.encode()


def tensor(offset, shape, strides, kind='storage', view=b''):
  """The pickled dict {'a': tensor}; its storage has four entries of float32."""
  storage = (b'(' + text(kind) + b'ctorch\nFloatStorage\n' + text('0') + text('cuda:0')
             + integer(4) + view + b'tQ')
  return (b'\x80\x02}' + text('a') + b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage
          + integer(offset) + integers(shape) + integers(strides) + b'\x89}tRs.')


def with_entries(saved, num_entries=4):
  entries = np.arange(num_entries, dtype='<f4').tobytes()
  return archive({'x/data.pkl': saved, 'x/data/0': entries, 'x/byteorder': b'little'})


def test_a_tensor_by_hand(tmp_path):
  found = read_bytes(tmp_path, with_entries(tensor(1, (2, 2), (1, 1))))
  np.testing.assert_array_equal(found['a'], [[1, 2], [2, 3]])
  # A file of 2019 says None where storages could once be views.
  found = read_bytes(tmp_path, with_entries(tensor(0, (4,), (1,), view=b'N')))
  np.testing.assert_array_equal(found['a'], [0, 1, 2, 3])


@pytest.mark.parametrize(('data', 'message'), [
    *((with_entries(saved), message) for saved, message in [
        (tensor(1, (4,), (1,)), 'a reaches beyond its 4 entries'),
        (tensor(4, (1,), (1,)), 'a reaches beyond'),
        (tensor(-1, (2,), (1,)), 'a reaches beyond'),
        (tensor(3, (2,), (-1,)), 'a reaches beyond'),
        (tensor(0, (-2,), (1,)), 'a reaches beyond'),
        (tensor(0, (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)), 'a reaches beyond'),
        (tensor(0, (2, 2), (1,)), 'is damaged'),
        (tensor(0, (4,), (1,), kind='module'), 'refers to .*module'),
        (tensor(0, (4,), (1,), view=integers((0, 1, 4))), 'refers to'),
        (tensor(0, (4,), (1,)).replace(b'ctorch\nFloatStorage', b'ctorch\nQInt8Storage'),
         'refers to .*QInt8Storage'),
        (tensor(0, (4,), (1,)).replace(b'tQ', b't'), 'a tensor has no storage')]),
    (with_entries(tensor(0, (4,), (1,)), num_entries=3), 'a must have 4 entries, got 3'),
    (archive({'x/data.pkl': tensor(0, (4,), (1,))}), 'is damaged.*x/data/0'),
    (archive({'x/data.pkl': tensor(0, (4,), (1,)), 'x/byteorder': b'big'}), 'big-endian'),
    (archive({'a.txt': b''}), 'must be .* torch.save or safetensors; .* 0 files data.pkl'),
    (archive({'images.npy': b'', 'labels.npy': b''}),
     'must be .* torch.save or safetensors; .*npz.*config.data.name'),
    (legacy(pickle.dumps([1, 2], 2)), 'state_dict, got a list'),
    (legacy(pickle.dumps({'epoch': 3}, 2)), 'got no tensors'),
    (legacy(pickle.dumps({}, 2)), 'got no tensors'),
    (legacy(pickle.dumps({}), little_endian=False), 'big-endian'),
    (pickle.dumps({'a': 1}), 'must be .*safetensors; is a pickle, but not one of torch.save'),
    (b'', "begins with b''"),
    (b'idx\tlabel\n', 'must be .* torch.save or safetensors; begins with'),
    (b'<!DOCTYPE html><html>', "begins with b'<!DOCTYPE'"),
])
def test_what_is_no_checkpoint(data, message, tmp_path):
  assert refused(f'FILE: .*{message}', read_bytes, tmp_path, data)


def test_a_folder_and_a_file_that_is_not_there(tmp_path):
  for path in (tmp_path, tmp_path / 'nothing.pth'):
    assert refused(f'{path} cannot be read', torch_weights.read, path)


def test_which_dict_of_tensors(tmp_path):
  entry = lambda name: text(name) + tensor(0, (1,), (1,))[2:-1]  # {'a': tensor}, put into the dict
  nested = lambda *names: with_entries(b'\x80\x02}(' + b''.join(map(entry, names)) + b'u.')
  assert set(read_bytes(tmp_path, nested('anything'))) == {'a'}
  file = nested('model_state_dict', 'ema_state_dict')
  assert refused("weights_part .*: one of 'model_state_dict', 'ema_state_dict'$", read_bytes,
                 tmp_path, file)
  assert set(read_bytes(tmp_path, file, 'ema_state_dict')) == {'a'}
  assert refused("weights_part must be one of .*, got 'ema'", read_bytes, tmp_path, file, 'ema')
  assert refused("weights_part must be None, .* 'a', got 'ema'", read_bytes, tmp_path,
                 nested('one'), 'ema')


def test_safetensors_of_an_unknown_type(tmp_path):
  header = json.dumps({'a': {'dtype': 'U64', 'shape': [1], 'data_offsets': [0, 8]}}).encode()
  data = struct.pack('<Q', len(header)) + header + bytes(8)
  assert refused('FILE: a .*F64, .*, got U64', read_bytes, tmp_path, data)


@pytest.mark.parametrize('start', [b'\x80', b'P'])
def test_safetensors_whose_header_begins_as_a_pickle_or_an_archive(start, tmp_path):
  data = next(data for padding in range(1000)
              for data in [safetensors.numpy.save({'a': np.ones(2, np.float32)},
                                                  {'padding': 'x' * padding})]
              if data.startswith(start))
  np.testing.assert_array_equal(read_bytes(tmp_path, data)['a'], [1, 1])
