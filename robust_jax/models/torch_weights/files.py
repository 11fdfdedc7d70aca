"""Reads the arrays of PyTorch checkpoints without PyTorch, and without running what is in them.

Three formats: safetensors; the zip archives of torch.save since PyTorch 1.6; and the pickles one
after the other that torch.save wrote before (2019's checkpoints). The last two are pickles, which
can call any function of Python: this reader knows the few that rebuild tensors, and puts an object
that does nothing in the place of every other.

Reference: torch/serialization.py; github.com/huggingface/safetensors, "Format".
"""

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from robust_jax.errors import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_STORAGES = {
    'DoubleStorage': 'float64', 'FloatStorage': 'float32', 'HalfStorage': 'float16',
    'BFloat16Storage': 'bfloat16', 'LongStorage': 'int64', 'IntStorage': 'int32',
    'ShortStorage': 'int16', 'CharStorage': 'int8', 'ByteStorage': 'uint8', 'BoolStorage': 'bool',
}
_SAFETENSORS_TYPES = {
    'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16', 'I64': 'int64',
    'I32': 'int32', 'I16': 'int16', 'I8': 'int8', 'U8': 'uint8', 'BOOL': 'bool',
}
# A dict with fewer than this share of the tensors of the largest is no network of the file.
_LEAST_SHARE = 0.25
_HINT = 'write it with torch.save(model.state_dict(), FILE)'
_ALLOWED = 'must be a PyTorch checkpoint, a file of torch.save or safetensors'


def read(path, part=None):
  """The named arrays of a PyTorch checkpoint.

  Args:
    path: a file of safetensors, or one of torch.save that holds a state_dict, by itself or in
      dicts such as {'epoch', 'args', 'state_dict', 'optimizer'}. The format is found from the
      file's contents, not from its name. Whatever else is in it, numbers of NumPy, namespaces,
      devices, objects of any class, is passed over, and nothing of it is run.
    part: which state_dict of a file with several, as 'ema_state_dict', or 'last.model' of one
      within another; or the start of names of which the file has several, as 'ema' of ema.conv1
      and model.conv1 (see `naming.convert`). None where there is one.

  Returns:
    {name: NumPy array} of the state_dict, with PyTorch's names, shapes and types (bfloat16 is
    ml_dtypes'). Arrays may be read-only views that share memory.

  Raises:
    UserError: there is no such file; it is damaged, or no checkpoint; it holds no state_dict, or
      several and `part` is none of them.
  """
  path = Path(path).expanduser()
  try:
    data = path.read_bytes()
  except OSError as error:
    raise UserError(f'{path} cannot be read ({error.strerror})') from error
  try:
    # First: a safetensors file may begin with any byte, but its header opens at the ninth.
    if data[8:9] == b'{':
      return _checked(_read_safetensors(data), part)
    if data.startswith(b'PK'):
      return _arrays(*_unpickle_zip(data), part)
    if data.startswith(b'\x80'):
      return _arrays(*_unpickle_legacy(data), part)
    raise UserError(f'{_ALLOWED}; begins with {data[:9]!r}')
  except UserError as error:
    raise UserError(f'{path}: {error}') from error
  except Exception as error:  # A damaged pickle or archive may raise anything.
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())
    raise UserError(f'{path}: is damaged, or no PyTorch checkpoint ({reason})') from error


def _read_safetensors(data):
  arrays = {}
  for name, entry in safetensors.deserialize(data):
    if entry['dtype'] not in _SAFETENSORS_TYPES:
      raise UserError(f'{name} must be of type {", ".join(_SAFETENSORS_TYPES)}, got '
                      f'{entry["dtype"]}')
    dtype = _dtype(_SAFETENSORS_TYPES[entry['dtype']])
    arrays[name] = np.frombuffer(entry['data'], dtype).reshape(entry['shape'])
  return arrays


class _Storage(NamedTuple):
  """A block of memory that tensors are views of: its name in the file, its type, its entries."""

  key: str
  dtype: str
  num_entries: int


class _Tensor(NamedTuple):
  """A tensor of a pickle: a view of a storage, whose contents are elsewhere in the file."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Other:
  """In the place of an object that is no tensor, container, number or string: it does nothing.

  Whatever an unpickler does to an object or to a class of it, to make and to fill it, is passed
  over. There is nothing to be set on it, so that one pickle cannot change what another one sees.
  """

  __slots__ = ()

  def __new__(cls, *args, **kwargs):
    del args, kwargs
    return super().__new__(cls)

  def __init__(self, *args, **kwargs):
    pass

  def _pass(self, *args, **kwargs):
    return self

  __call__ = __setstate__ = __setitem__ = append = extend = add = _pass


class _Unpickler(pickle.Unpickler):
  """Makes `_Tensor`s, plain containers, numbers and strings, and `_Other`s for all else.

  A pickle calls what `find_class` returns, and may try to set attributes of it. So these are a
  built-in class, strings, and functions and classes made for this pickle alone, which nothing else
  sees.
  """

  def __init__(self, file):
    # The strings of Python 2, among which are the bytes of NumPy's numbers.
    super().__init__(file, encoding='utf-8', errors='replace')
    self.storages = {}
    self._classes = {
        ('collections', 'OrderedDict'): collections.OrderedDict,
        ('collections', 'defaultdict'): lambda *_: {},
        ('torch._utils', '_rebuild_tensor_v2'): lambda *arguments: _rebuild_tensor(*arguments),
        ('torch._utils', '_rebuild_parameter'): lambda tensor, *_: tensor,
        ('torch._utils', '_rebuild_parameter_with_state'): lambda tensor, *_: tensor,
        **{('torch', name): dtype for name, dtype in _TORCH_STORAGES.items()}}

  def find_class(self, module, name):
    key = module, name
    if key not in self._classes:
      self._classes[key] = type(f'{module}.{name}'[:100], (_Other,), {'__slots__': ()})
    return self._classes[key]

  def persistent_load(self, pid):
    kind, dtype, key, _, num_entries, *view = pid  # the fourth: a device, such as 'cuda:0'
    known = isinstance(dtype, str) and dtype in _TORCH_STORAGES.values()
    if kind != 'storage' or not known or any(view):
      raise UserError(f'must hold nothing but tensors, refers to {str(pid)[:100]!r}; {_HINT}')
    self.storages[key] = _Storage(key, dtype, num_entries)
    return self.storages[key]


def _rebuild_tensor(storage, offset, shape, strides, *unused):
  """unused: requires_grad, backward hooks, metadata."""
  del unused
  if not isinstance(storage, _Storage):
    raise UserError('is damaged: a tensor has no storage')
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _unpickle_zip(data):
  """(saved object with `_Tensor`s; function _Storage -> bytes) of a zip archive."""
  archive = zipfile.ZipFile(io.BytesIO(data))
  names = archive.namelist()
  pickles = [name for name in names if name.endswith('/data.pkl')]
  if len(pickles) != 1:
    what = f'is a zip archive with {len(pickles)} files data.pkl, and torch.save writes one'
    if names and all(name.endswith('.npy') for name in names):
      what = 'is a NumPy file .npz of arrays, which config.data.name takes as data'
    raise UserError(f'{_ALLOWED}; {what}')
  folder = pickles[0].removesuffix('data.pkl')
  byte_order = f'{folder}byteorder'
  _check_little_endian(byte_order not in archive.namelist()
                       or archive.read(byte_order) == b'little')
  saved = _Unpickler(io.BytesIO(archive.read(pickles[0]))).load()
  return saved, lambda storage: archive.read(f'{folder}data/{storage.key}')


def _unpickle_legacy(data):
  """The same of the older format.

  Pickles of a magic number, a version, the machine, the saved object, and the storages' names;
  then, in the order of these, the number of entries as int64 and the entries of each storage.
  """
  file = io.BytesIO(data)
  if _Unpickler(file).load() != _LEGACY_MAGIC:
    raise UserError(f'{_ALLOWED}; is a pickle, but not one of torch.save; {_HINT}')
  _Unpickler(file).load()
  _check_little_endian(_Unpickler(file).load()['little_endian'])
  unpickler = _Unpickler(file)
  saved = unpickler.load()
  contents = {}
  for key in _Unpickler(file).load():
    size = int.from_bytes(file.read(8), 'little') * _dtype(unpickler.storages[key].dtype).itemsize
    contents[key] = memoryview(data)[file.tell():file.tell() + size]
    file.seek(size, io.SEEK_CUR)
  return saved, lambda storage: contents[storage.key]


def _check_little_endian(is_little_endian):
  if not is_little_endian:
    raise UserError('must be little-endian, was written on a big-endian machine')


def _arrays(saved, contents, part):
  """The arrays of the state_dict in a saved object; `contents`: _Storage -> bytes."""
  storages, arrays = {}, {}
  for name, tensor in _state_dict(saved, part).items():
    storage = tensor.storage
    if storage.key not in storages:
      storages[storage.key] = np.frombuffer(contents(storage), _dtype(storage.dtype))
      if len(storages[storage.key]) != storage.num_entries:
        raise UserError(f'is damaged: {name} must have {storage.num_entries} entries, got '
                        f'{len(storages[storage.key])}')
    arrays[name] = _view(name, storages[storage.key], *tensor[1:])
  return arrays


def _state_dict(saved, part):
  """{name: _Tensor}, from the saved dict or one of the dicts in it."""
  if not isinstance(saved, dict):
    raise UserError(f'must hold a state_dict, got a {type(saved).__name__}; {_HINT}')
  found = _state_dicts(saved)
  if not found:
    raise UserError(f'must hold a state_dict, got no tensors; {_HINT}')
  if part in found:
    return found[part]
  most = max(map(len, found.values()))
  found = {path: tensors for path, tensors in found.items() if len(tensors) >= _LEAST_SHARE * most}
  if len(found) > 1:
    must = 'must be' if part is not None else 'says which of its state_dicts is read:'
    raise UserError(f'config.weights_part {must} one of {", ".join(map(repr, found))}'
                    + (f', got {part!r}' if part is not None else ''))
  return _checked(*found.values(), part)


def _state_dicts(saved, path=''):
  """{path: {name: _Tensor}} of the dicts of tensors in a dict; its own where it has no such."""
  found = {}
  for key, value in saved.items():
    if isinstance(key, str) and isinstance(value, dict):  # Optimizers' keys are numbers.
      found |= _state_dicts(value, f'{path}.{key}'.removeprefix('.'))
  own = {name: value for name, value in saved.items()
         if isinstance(name, str) and isinstance(value, _Tensor)}
  return found or ({path: own} if own else {})


def _checked(named, part):
  """`named`, if a name starts with `part`."""
  if part is not None and not any(name.startswith(f'{part}.') for name in named):
    raise UserError(f'config.weights_part must be None, for the one state_dict of the file, or the '
                    f'start of names in it, as {next(iter(named))!r}, got {part!r}')
  return named


def _view(name, entries, offset, shape, strides):
  """The tensor with these entries; checked, because NumPy would read beyond their end."""
  if 0 in shape:
    return np.zeros(shape, entries.dtype)
  last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
  if min(offset, *shape, *strides, 0) < 0 or last >= len(entries):
    raise UserError(f'is damaged: {name} reaches beyond its {len(entries)} entries')
  return np.lib.stride_tricks.as_strided(
      entries[offset:], shape, [stride * entries.itemsize for stride in strides], writeable=False)


def _dtype(name):
  return jnp.dtype(name)  # which, unlike np.dtype, knows bfloat16 whatever has been imported
