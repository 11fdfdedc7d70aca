"""PyTorch's checkpoints against what PyTorch reads and computes (tests/golden)."""

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from golden import seeded

from robust_jax import keys, models
from robust_jax.errors import UserError
from robust_jax.models import resnet, torch_weights

GOLDEN = Path(__file__).parent / 'golden'
FORMATS = ['zip.pth', 'legacy.pth', '.safetensors']


def golden(kind, stem='torch'):
  return GOLDEN / (f'{stem}{kind}' if kind.startswith('.') else f'{stem}_{kind}')


def apply(model, variables, images):
  """Logits, layer by layer: compiling a network as a whole takes longer than one use is worth."""
  return model.apply(variables, images, train=False)


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
    ('preact_resnet18', {}),
    ('preact_resnet18 without final norm', {'final_norm': False}),
    ('wide_resnet', {'depth': 16, 'width': 2}),
    ('wide_resnet of deepmind',
     {'depth': 16, 'width': 2, 'form': 'deepmind', 'activation': 'swish'}),
])
def test_logits_equal_those_of_pytorch(case, kwargs):
  arrays, images, expected = torch_case(case)
  model = models.create(case.split()[0], expected.shape[1], **kwargs)
  variables = torch_weights.convert(arrays, model, images.shape[1:])
  np.testing.assert_allclose(apply(model, variables, images), expected, rtol=1e-5, atol=1e-5)


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
  path = golden(kind)
  variables = torch_weights.load(path, small, (8, 8, 3))
  mean, std = torch_weights.normalisation(torch_weights.read(path))
  np.testing.assert_allclose([mean, std], [[0.4, 0.5, 0.6], [0.25, 0.5, 0.2]], rtol=1e-6)
  images = seeded.images((2, 8, 8, 3))
  expected = json.loads((GOLDEN / 'torch_resnet8.json').read_text())
  logits = apply(small, variables, (images - np.float32(mean)) / np.float32(std))
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
    ('0.means', '0.sds', (3,)),
    ('mean', 'std', (3, 1, 1)),
    ('module.mu', 'module.sigma', (1, 3, 1, 1)),
])
def test_normalisation_is_found(means, sds, shape):
  arrays = {means: np.full(shape, 0.5, np.float32), sds: np.full(shape, 0.25, np.float32),
            'bn1.running_mean': np.zeros(4)}
  assert torch_weights.normalisation(arrays) == ((0.5,) * 3, (0.25,) * 3)


def test_no_normalisation():
  assert torch_weights.normalisation({'mean': np.zeros(3), 'bn1.running_mean': np.zeros(3)}) is None


@pytest.mark.parametrize(('change', 'message'), [
    (lambda arrays: arrays.pop('layer2.0.conv1.weight'),
     r'layer2.0.conv1.weight is missing; the model needs .* with the shape \[8, 4, 3, 3\]'),
    (lambda arrays: [arrays.pop(f'bn1.{name}') for name in ('weight', 'bias', 'running_mean')],
     'bn1.*, bn1.* and 1 more are missing; the model needs'),
    (lambda arrays: arrays.update(extra=np.zeros(3)), 'extra has no place in the model'),
    (lambda arrays: arrays.update({'1.mean': np.zeros(3)}), '1.mean has no place in the model'),
    (lambda arrays: arrays.update({'fc.weight': np.zeros((10, 16), np.float32)}),
     r'fc.weight has the shape \[10, 16\]; \[5, 16\] is allowed'),
    (lambda arrays: arrays.update({'fc.bias': np.zeros(5, np.int64)}),
     'fc.bias is of type int64; floating-point numbers are allowed'),
    (lambda arrays: arrays.update({'fc.bias': np.full(5, np.nan, np.float32)}),
     'fc.bias has .* finite'),
    (lambda arrays: arrays.update({'fc.bias': np.full(5, 1e60)}), 'fc.bias has .* finite'),
    (lambda arrays: [arrays.pop(name) for name in list(arrays)] and arrays.update(a=np.zeros(1)),
     'it has a, and no array of this ResNet; .* are allowed'),
])
def test_arrays_that_do_not_fit(change, message, small, small_arrays):
  arrays = dict(small_arrays)
  change(arrays)
  with pytest.raises(UserError, match=f'^FILE: .*({message})') as raised:
    torch_weights.convert(arrays, small, (8, 8, 3), path='FILE')
  assert '\n' not in str(raised.value)


def test_other_architectures_and_images(small):
  with pytest.raises(UserError, match=r'zip.pth: 1.module.layer1.1.bn1.*, .* 58 more are missing'):
    torch_weights.load(golden('zip.pth'), models.create('resnet20', 5), (8, 8, 3))
  with pytest.raises(UserError, match=r'conv1.weight has the shape \[4, 3, 3, 3\]; \[4, 1, 3, 3\]'):
    torch_weights.load(golden('zip.pth'), small, (8, 8, 1))
  with pytest.raises(UserError, match='no PyTorch naming of a CNN'):
    torch_weights.load(golden('zip.pth'), models.create('lenet', 5), (28, 28, 1))
  # The names of the other form of the same module do not fit: its padding differs.
  with pytest.raises(UserError, match='no array of this PreActResNet|are missing'):
    arrays, images, _ = torch_case('wide_resnet of deepmind')
    model = models.create('wide_resnet', 10, depth=16, width=2)
    torch_weights.convert(arrays, model, images.shape[1:])


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


def test_the_formats_hold_the_same():
  first, *others = [torch_weights.read(golden(kind)) for kind in FORMATS]
  assert len(first) == 2 + 9 * 6 + 2  # normalisation; convolutions with BatchNorm; dense
  for other in others:
    assert other.keys() == first.keys()
    for name, array in other.items():
      np.testing.assert_array_equal(array, first[name])


def read_bytes(tmp_path, data):
  path = tmp_path / 'FILE'
  path.write_bytes(data)
  return torch_weights.read(path)


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


@pytest.mark.parametrize('protocol', [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(('function', 'name'), [
    (os.system, f'{os.name}.system'), (eval, 'eval'), (getattr, 'getattr'),
    (np.zeros, 'numpy.*zeros'), (pickle.loads, 'pickle.loads')])
def test_a_pickle_that_calls_functions_is_refused(function, name, protocol, tmp_path):
  touched = tmp_path / 'touched'
  command = {os.system: f'touch {touched}', eval: f'open({str(touched)!r}, "w")'}
  call = Calls(function, command.get(function, 'x'))
  for saved in (call, {'state_dict': {}, 'other': [call]}):
    data = pickle.dumps(saved, protocol)
    files = [legacy(data), archive({'archive/data.pkl': data})]
    for file in [*files, data] if protocol >= 2 else files:
      with pytest.raises(UserError, match=rf"FILE: it asks for '.*{name}', .*allowed") as raised:
        read_bytes(tmp_path, file)
      assert '\n' not in str(raised.value)
  assert not touched.exists()


def test_the_first_pickles_of_an_old_file_are_restricted_too(tmp_path):
  whole = [pickle.dumps(part, 2) for part in
           (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}, {}, [])]
  touched = tmp_path / 'touched'
  bad = pickle.dumps(Calls(os.system, f'touch {touched}'), 2)
  for place in range(len(whole)):
    with pytest.raises(UserError, match="it asks for '.*system'"):
      read_bytes(tmp_path, b''.join([*whole[:place], bad, *whole[place + 1:]]))
  assert not touched.exists()


def test_what_a_pickle_may_ask_for_cannot_be_changed(tmp_path):
  build = b'}(X\x08\x00\x00\x00__call__K\x01ub.'  # state {'__call__': 1}, BUILD
  slots = b'N}(X\x08\x00\x00\x00__call__K\x01u\x86b.'  # the same as attributes
  for name in (b'ctorch._utils\n_rebuild_tensor_v2\n', b'ccollections\nOrderedDict\n',
               b'ctorch\nFloatStorage\n'):
    for state in (build, slots):
      with pytest.raises(UserError):
        read_bytes(tmp_path, legacy(b'\x80\x02' + name + state))
  assert torch_weights.read(golden('legacy.pth'))


@pytest.mark.parametrize(('saved', 'message'), [
    ([1, 2], 'it holds a list; a state_dict is allowed'),
    ({'epoch': 3}, 'it holds no tensors; a state_dict is allowed'),
    ({}, 'it holds no tensors'),
])
def test_what_is_no_state_dict(saved, message, tmp_path):
  with pytest.raises(UserError, match=f'FILE: {message}'):
    read_bytes(tmp_path, legacy(pickle.dumps(saved, 2)))


@pytest.mark.parametrize('kind', FORMATS)
def test_a_truncated_file_is_a_user_error(kind, tmp_path):
  data = golden(kind, 'torch_tensors').read_bytes()
  for size in {0, 1, 8, 9, 20, 200, len(data) // 2, len(data) - 1}:
    with pytest.raises(UserError, match='FILE') as raised:
      read_bytes(tmp_path, data[:size])
    assert '\n' not in str(raised.value)


def test_a_flipped_bit_in_an_archive_is_a_user_error(tmp_path):
  data = bytearray(golden('zip.pth').read_bytes())
  place = data.index(torch_weights.read(golden('zip.pth'))['1.module.conv1.weight'].tobytes())
  data[place] ^= 1
  with pytest.raises(UserError, match='FILE is damaged, .*CRC'):
    read_bytes(tmp_path, bytes(data))


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


@pytest.mark.parametrize(('saved', 'message'), [
    (tensor(1, (4,), (1,)), 'a reaches beyond its 4 entries'),
    (tensor(4, (1,), (1,)), 'a reaches beyond'),
    (tensor(-1, (2,), (1,)), 'a reaches beyond'),
    (tensor(3, (2,), (-1,)), 'a reaches beyond'),
    (tensor(0, (-2,), (1,)), 'a reaches beyond'),
    (tensor(0, (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)), 'a reaches beyond'),
    (tensor(0, (2, 2), (1,)), 'is damaged'),
    (tensor(0, (4,), (1,), kind='module'), 'it refers to .*module.*; tensors are allowed'),
    (tensor(0, (4,), (1,), view=integers((0, 1, 4))), 'it refers to'),
    (tensor(0, (4,), (1,)).replace(b'ctorch\nFloatStorage', b'ctorch\nQInt8Storage'),
     "it asks for 'torch.QInt8Storage'"),
    (tensor(0, (4,), (1,)).replace(b'tQ', b't'), 'it has a tensor without a storage'),
])
def test_a_tensor_outside_of_its_storage(saved, message, tmp_path):
  with pytest.raises(UserError, match=f'FILE:? {message}'):
    read_bytes(tmp_path, with_entries(saved))


@pytest.mark.parametrize(('data', 'message'), [
    (with_entries(tensor(0, (4,), (1,)), num_entries=3), 'a has 3 entries, and should have 4'),
    (archive({'x/data.pkl': tensor(0, (4,), (1,))}), 'is damaged.*x/data/0'),
    (archive({'x/data.pkl': tensor(0, (4,), (1,)), 'x/byteorder': b'big'}), 'big-endian'),
    (archive({'a.txt': b''}), 'a zip archive with 0 files data.pkl'),
    (legacy(pickle.dumps({}), little_endian=False), 'big-endian'),
    (pickle.dumps({'a': 1}), 'it is a pickle, but none of torch.save'),
    (b'', " begins with b''"),
    (b'<!DOCTYPE html><html>', " begins with b'<!DOCTYPE'; .* is allowed"),
])
def test_what_is_no_checkpoint(data, message, tmp_path):
  with pytest.raises(UserError, match=f'FILE.*{message}'):
    read_bytes(tmp_path, data)


def test_a_folder_and_a_file_that_is_not_there(tmp_path):
  for path in (tmp_path, tmp_path / 'nothing.pth'):
    with pytest.raises(UserError, match=f'{path} cannot be read .*; a PyTorch checkpoint is'):
      torch_weights.read(path)


def test_which_dict_of_tensors(tmp_path):
  entry = lambda name: text(name) + tensor(0, (1,), (1,))[2:-1]  # {'a': tensor}, put into the dict
  nested = lambda *names: b'\x80\x02}(' + b''.join(map(entry, names)) + b'u.'
  assert set(read_bytes(tmp_path, with_entries(nested('anything')))) == {'a'}
  assert set(read_bytes(tmp_path, with_entries(nested('ema', 'state_dict')))) == {'a'}
  with pytest.raises(UserError, match="several dicts of tensors, 'one', 'two'; one, .*state_dict"):
    read_bytes(tmp_path, with_entries(nested('one', 'two')))


def test_safetensors_of_an_unknown_type(tmp_path):
  header = json.dumps({'a': {'dtype': 'U64', 'shape': [1], 'data_offsets': [0, 8]}}).encode()
  with pytest.raises(UserError, match='FILE: a is of type U64; F64, .* are allowed'):
    read_bytes(tmp_path, struct.pack('<Q', len(header)) + header + bytes(8))


def test_safetensors_whose_header_begins_as_a_pickle_or_an_archive(tmp_path):
  for start in (b'\x80', b'P'):
    for padding in range(1000):
      data = safetensors.numpy.save({'a': np.ones(2, np.float32)}, {'padding': 'x' * padding})
      if data.startswith(start):
        break
    assert data.startswith(start)
    np.testing.assert_array_equal(read_bytes(tmp_path, data)['a'], [1, 1])
