"""Published datasets from their archives: small ones, written here in the true formats."""

import gzip
import hashlib
import io
import pickle
import struct
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from scipy.io import savemat

from robust_jax import data
from robust_jax.data import __main__ as command
from robust_jax.data import archives, imagenet, imagenet_resized, prepare
from robust_jax.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = {'train': RNG.integers(0, 256, (20, 32, 32, 3), np.uint8),
          'test': RNG.integers(0, 256, (6, 32, 32, 3), np.uint8)}
LABELS = {'train': RNG.permutation(np.arange(20) % 10), 'test': np.array([3, 0, 9, 9, 1, 2])}
NAMES = [f'kind_{number}' for number in range(10)]


class Python2(pickle._Pickler):
  """Pickles as Python 2 wrote them, in protocol 2: bytes are its strings, in CIFAR the keys too."""

  dispatch = dict(pickle._Pickler.dispatch)

  def save_string(self, value):
    size = b'U' + bytes([len(value)]) if len(value) < 256 else b'T' + struct.pack('<i', len(value))
    self.write(size + value)
    self.memoize(value)

  dispatch[bytes] = save_string


def pickled(value):
  file = io.BytesIO()
  Python2(file, 2).dump(value)
  # As Python 2 and its NumPy called them.
  return file.getvalue().replace(b'numpy._core.multiarray', b'numpy.core.multiarray')


def matlab(**arrays):
  file = io.BytesIO()
  savemat(file, arrays)
  return file.getvalue()


def planes(split, rows=slice(None)):
  """[number, 3072] as CIFAR has it: all of red, then green, then blue."""
  return np.ascontiguousarray(IMAGES[split][rows].transpose(0, 3, 1, 2)).reshape(-1, 3072)


def cell(names):
  column = np.empty((len(names), 1), object)
  column[:, 0] = names
  return column


def batch(form, name, split, rows=slice(None)):
  """(name, content) of a file of CIFAR-10."""
  labels = LABELS[split][rows].astype(np.uint8)
  if form == 'python':
    return name, pickled({b'batch_label': b'some', b'labels': labels.tolist(),
                          b'data': planes(split, rows), b'filenames': [b'a.png'] * len(labels)})
  if form == 'binary':
    return f'{name}.bin', np.column_stack([labels, planes(split, rows)]).tobytes()
  return f'{name}.mat', matlab(data=planes(split, rows), labels=labels[:, None])


def cifar10(form):
  """{name: content} of the files of the small CIFAR-10 in one of the three published forms."""
  parts = [batch(form, f'data_batch_{n}', 'train', slice(4 * n - 4, 4 * n)) for n in range(1, 6)]
  names = {
      'python': ('batches.meta', pickled({b'label_names': [name.encode() for name in NAMES]})),
      'binary': ('batches.meta.txt', '\n'.join([*NAMES, '', '']).encode()),
      'matlab': ('batches.meta.mat', matlab(label_names=cell(NAMES)))}[form]
  return dict([*parts, batch(form, 'test_batch', 'test'), names])


def cifar100(form):
  files, coarse = {}, b'coarse_labels'
  names = [f'fine_{number}' for number in range(100)]
  for split, labels in LABELS.items():
    fine, other = 10 * labels, 0 * labels
    files |= {
        'python': {split: pickled({b'fine_labels': fine.tolist(), coarse: other.tolist(),
                                   b'data': planes(split)})},
        'binary': {f'{split}.bin': np.column_stack(
            [other.astype(np.uint8), fine.astype(np.uint8), planes(split)]).tobytes()},
        'matlab': {f'{split}.mat': matlab(data=planes(split), coarse_labels=other[:, None],
                                          fine_labels=fine.astype(np.uint8)[:, None])},
    }[form]
  return files | {
      'python': {'meta': pickled({b'fine_label_names': [name.encode() for name in names]})},
      'binary': {'fine_label_names.txt': '\n'.join(names).encode()},
      'matlab': {'meta.mat': matlab(fine_label_names=cell(names))}}[form]


def idx(array):
  return struct.pack(f'>4B{array.ndim}I', 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist(form='gz'):
  files = {}
  for split, name in (('train', 'train'), ('test', 't10k')):
    for kind, array in (('images-idx3', IMAGES[split][..., 0]),
                        ('labels-idx1', LABELS[split].astype(np.uint8))):
      files[f'{name}-{kind}-ubyte'] = idx(array)
  return {f'{name}.gz': gzip.compress(content, mtime=0) for name, content in files.items()
          } if form == 'gz' else files


def svhn():
  return {f'{split}_32x32.mat': matlab(
      X=IMAGES[split].transpose(1, 2, 3, 0),
      y=np.where(LABELS[split] == 0, 10, LABELS[split])[:, None].astype(np.uint8))
      for split in IMAGES}


def write(folder, files):
  folder.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    (folder / name).write_bytes(content)
  return folder


def write_tar(path, files, mode='w:gz'):
  with tarfile.open(path, mode) as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(f'some-batches/{name}')
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return path


def write_zip(path, files):
  with zipfile.ZipFile(path, 'w') as archive:
    for name, content in files.items():
      archive.writestr(f'some/{name}', content)
  return path


def loaded(path):
  return {split: data.load(str(path), split) for split in ('train', 'test')}


def check(path, channels=slice(None), factor=1):
  for split, dataset in loaded(path).items():
    np.testing.assert_array_equal(dataset.images, IMAGES[split][..., channels])
    np.testing.assert_array_equal(dataset.labels, factor * LABELS[split])
  return dataset


@pytest.mark.parametrize('form', ['python', 'binary', 'matlab'])
def test_cifar10_in_each_form(form, tmp_path):
  source = write_tar(tmp_path / 'cifar.tar.gz', cifar10(form))
  assert '20 train and 6 test images of 32x32x3' in prepare.prepare(
      'cifar10', source, tmp_path / 'out.npz')
  dataset = check(tmp_path / 'out.npz')
  assert dataset.class_names == tuple(NAMES)
  preset = data.DATASETS['cifar10']
  assert (dataset.mean, dataset.std) == (preset.mean, preset.std)


@pytest.mark.parametrize('form', ['python', 'binary', 'matlab'])
def test_cifar100_has_its_fine_labels(form, tmp_path):
  source = write(tmp_path / 'unpacked' / 'cifar-100', cifar100(form))
  prepare.prepare('cifar100', source.parent, tmp_path / 'out.npz')
  dataset = check(tmp_path / 'out.npz', factor=10)
  assert dataset.num_classes == 100 and dataset.class_names[90] == 'fine_90'


@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist'])
@pytest.mark.parametrize('place', [
    lambda path: write(path, mnist()), lambda path: write(path, mnist('unpacked')),
    lambda path: write(path, {name.replace('-idx', '.idx'): content
                              for name, content in mnist('unpacked').items()}),
    lambda path: write_zip(path, mnist())])
def test_mnist_and_its_like(name, place, tmp_path, capsys):
  prepare.prepare(name, place(tmp_path / 'raw'), tmp_path / 'out.npz')
  dataset = check(tmp_path / 'out.npz', slice(1))
  assert dataset.class_names[9] == {'mnist': '9', 'fashion_mnist': 'Ankle boot'}[name]
  assert (dataset.mean, dataset.std) == (0., 1.)


def test_svhn(tmp_path):
  prepare.prepare('svhn_cropped', write(tmp_path / 'raw', svhn()), tmp_path / 'out.npz')
  assert check(tmp_path / 'out.npz').class_names == tuple('0123456789')


def test_keras_arrays(tmp_path):
  np.savez(tmp_path / 'mnist.npz', **{
      f'{name}_{split}': value[split][..., 0] if name == 'x' else value[split]
      for name, value in (('x', IMAGES), ('y', LABELS)) for split in IMAGES})
  prepare.prepare('mnist', tmp_path / 'mnist.npz', tmp_path / 'out.npz')
  check(tmp_path / 'out.npz', slice(1))


def test_pickles_of_python_3_are_read_too():
  value = {'data': planes('test'), 'labels': [1, 2], 'name': b'\xff\xe9'}
  found = archives.unpickle(pickle.dumps(value, protocol=2))
  np.testing.assert_array_equal(found['data'], value['data'])
  assert (found['labels'], found['name']) == ([1, 2], b'\xff\xe9')


class Evil:
  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('call', [
    (print, 'evil'), (eval, 'print("evil")'), (getattr, 'a', 'upper'),
    (np.load, 'some.npy', None, True), (np.fromfile, 'some.npy'), (pickle.loads, b'N.')])
def test_a_pickle_that_calls_something_is_refused(call, tmp_path, capsys):
  files = cifar10('python')
  files['data_batch_2'] = pickled({b'data': Evil(*call), b'labels': [0]})
  source = write_tar(tmp_path / 'cifar.tar.gz', files)
  with pytest.raises(UserError, match=rf'data_batch_2.*asks for \S+\.{call[0].__name__}'):
    prepare.prepare('cifar10', source, tmp_path / 'out.npz')
  assert 'evil' not in capsys.readouterr().out and not (tmp_path / 'out.npz').exists()


def test_the_calls_that_make_arrays_make_no_other_things():
  for module, name, arguments in (
      ('_codecs', 'encode', ('a', 'rot13')),
      ('numpy.core.multiarray', '_reconstruct', (str, (), 'b')),
      ('builtins', 'bytes', (4,)), ('numpy', 'memmap', ('file',)), ('numpy', 'load', ('file',))):
    find = archives._ArraysOnly(io.BytesIO(b'')).find_class
    with pytest.raises(UserError, match='asks for'):
      find(module, name)(*arguments)


def without(files, name):
  return {key: value for key, value in files.items() if key != name}


TRAIN = 'train-images-idx3-ubyte'
WRONG = {
    'a batch is missing': ('cifar10', lambda: without(cifar10('python'), 'data_batch_3'),
                           'without data_batch_3'),
    'no names': ('cifar100', lambda: without(cifar100('binary'), 'fine_label_names.txt'),
                 'without fine_label_names.txt'),
    'nothing': ('svhn_cropped', dict, 'train_32x32.mat, test_32x32.mat'),
    'a cut-off pickle': ('cifar10', lambda: {**cifar10('python'), 'test_batch': pickled({})[:3]},
                         'test_batch: cannot be read'),
    'other keys': ('cifar10', lambda: {**cifar10('python'), 'test_batch': pickled({b'a': 2})},
                   "test_batch: cannot be read .*'data'"),
    'cut-off records': ('cifar10', lambda: {**cifar10('binary'), 'test_batch.bin': bytes(3000)},
                        'records of 3073 bytes, got 3000'),
    'a label too large': ('cifar10', lambda: {**cifar10('binary'), 'test_batch.bin': bytes(
        [12]) + bytes(3072)}, r'test_labels: .*0\.\.9, got 12'),
    'other images': ('cifar10', lambda: {**cifar10('python'), 'test_batch': pickled(
        {b'data': np.zeros((2, 100), np.uint8), b'labels': [0, 1]})}, r'3072\], got uint8 .*100'),
    'objects': ('cifar10', lambda: {**cifar10('python'), 'test_batch': pickled(
        {b'data': np.array([[None] * 3072]), b'labels': [0]})}, '3072.*got object'),
    'fewer labels': ('mnist', lambda: {**mnist(), 't10k-labels-idx1-ubyte.gz': idx(
        np.zeros(5, np.uint8))}, 'test_labels must be 6.*got 5'),
    'cut-off gzip': ('mnist', lambda: {**mnist(), f'{TRAIN}.gz': mnist()[f'{TRAIN}.gz'][:99]},
                     f'{TRAIN}.*cannot be read'),
    'cut-off idx': ('mnist', lambda: {**mnist('raw'), TRAIN: mnist('raw')[TRAIN][:-1]},
                    f'{TRAIN}.*20480 bytes .*got 20479'),
    'no idx': ('mnist', lambda: {**mnist('raw'), TRAIN: b'<html>not found'}, 'IDX .*begins with'),
    'no matlab': ('svhn_cropped', lambda: {**svhn(), 'test_32x32.mat': b'nothing here'},
                  'test_32x32.mat: cannot be read'),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_cannot_be_read_is_one_line(case, tmp_path, capsys):
  name, files, message = WRONG[case]
  with pytest.raises(SystemExit) as ended:
    command.main(['prepare', name, f'--source={write(tmp_path / "raw", files())}',
                  f'--output={tmp_path}/out.npz'])
  error, = capsys.readouterr().err.splitlines()[-1:]
  assert ended.value.code == 2 and not [*tmp_path.glob('out*')]
  with pytest.raises(UserError, match=message):
    raise UserError(error)


@pytest.mark.parametrize('words, message', [
    (['prepare', 'cifar'], "NAME.*'cifar'.*cifar10"), ([], 'COMMAND'),
    (['prepare', 'mnist', '--source={tmp}/gone'], '--source .*gone'),
    (['prepare', 'mnist', '--source={tmp}/file'], 'file must be a folder, an archive'),
    (['prepare', 'mnist', '--source={tmp}/half.tar.gz'], 'half.tar.gz'),
    (['prepare', 'mnist', '--output={tmp}/file'], '--output .*file'),
    (['prepare', 'mnist', '--output={tmp}/there.npz'], '--output .*there.npz'),
    (['prepare', 'mnist', '--output={tmp}/no/new.npz'], '--output .*new.npz')])
def test_mistakes_on_the_command_line_are_one_line(words, message, tmp_path, capsys):
  for name in ('file', 'there.npz'):
    (tmp_path / name).write_text('nothing')
  whole = write_tar(tmp_path / 'whole.tar.gz', cifar10('binary')).read_bytes()
  (tmp_path / 'half.tar.gz').write_bytes(whole[:len(whole) // 2])
  with pytest.raises(SystemExit) as ended:
    command.main([word.format(tmp=tmp_path) for word in words])
  error, = capsys.readouterr().err.splitlines()
  assert ended.value.code == 2 and error.startswith('error: ')
  with pytest.raises(UserError, match=message):
    raise UserError(error)


# What is downloaded, and what was published.


@pytest.fixture
def web(tmp_path, monkeypatch):
  """A folder in place of the web, with the small MNIST and its sums."""
  folder = write(tmp_path / 'web', mnist())
  sums = {name: hashlib.md5(content).hexdigest() for name, content in mnist().items()}
  monkeypatch.setitem(prepare.DOWNLOADS, 'mnist', (f'{folder.as_uri()}/', sums))
  return folder


def test_a_download_is_what_was_published(web, tmp_path):
  prepare.prepare('mnist', output=tmp_path / 'a.npz')
  check(tmp_path / 'a.npz', slice(1))
  file = web / 't10k-labels-idx1-ubyte.gz'
  file.write_bytes(gzip.compress(idx(np.zeros(6, np.uint8))))
  with pytest.raises(UserError, match='t10k-labels.*not the file that was published'):
    prepare.prepare('mnist', output=tmp_path / 'b.npz')
  file.unlink()
  with pytest.raises(UserError, match='t10k-labels.* cannot be downloaded .*--source') as raised:
    prepare.prepare('mnist', output=tmp_path / 'b.npz')
  assert '\n' not in str(raised.value) and not (tmp_path / 'b.npz').exists()


def test_a_source_that_is_not_what_was_published_is_said(web, tmp_path, capsys):
  prepare.prepare('mnist', web, tmp_path / 'a.npz')
  assert not capsys.readouterr().err
  (web / 't10k-labels-idx1-ubyte.gz').write_bytes(gzip.compress(idx(np.zeros(6, np.uint8))))
  prepare.prepare('mnist', web, tmp_path / 'b.npz')
  line, = capsys.readouterr().err.splitlines()
  assert 't10k-labels-idx1-ubyte.gz is not the file that was published' in line


@pytest.mark.parametrize('name, shape', [('mnist', (28, 28, 1)), ('cifar10', (32, 32, 3))])
def test_real_images_come_back_as_they_were(name, shape, test_data_dir, tmp_path):
  """The first thousand test images, written as they were published."""
  test = data.load(name, 'test[:1000]', data_dir=str(test_data_dir / 'tfds'))
  labels = test.labels.astype(np.uint8)
  if name == 'mnist':
    files = {f'{split}-{kind}': content for split in ('train', 't10k') for kind, content in (
        ('images-idx3-ubyte', idx(test.images[..., 0])), ('labels-idx1-ubyte', idx(labels)))}
  else:
    rows = test.images.transpose(0, 3, 1, 2).reshape(1000, -1)
    batch = pickled({b'data': np.ascontiguousarray(rows), b'labels': labels.tolist()})
    files = {**{f'data_batch_{number}': batch for number in range(1, 6)}, 'test_batch': batch,
             'batches.meta': pickled({b'label_names': [name.encode()
                                                       for name in test.class_names]})}
  prepare.prepare(name, write(tmp_path / 'raw', files), tmp_path / 'out.npz')
  found = data.load(str(tmp_path / 'out.npz'), 'test')
  np.testing.assert_array_equal(found.images, test.images)
  np.testing.assert_array_equal(found.labels, test.labels)
  assert found.image_shape == shape and found.class_names == test.class_names
  assert (found.mean, found.std) == (test.mean, test.std)
  assert 'tensorflow' not in sys.modules


# ImageNet of few pixels.

SMALL = {f'train_data_batch_{number}': RNG.integers(0, 256, (2, 8, 8, 3), np.uint8)
         for number in range(1, 11)} | {'val_data': RNG.integers(0, 256, (5, 8, 8, 3), np.uint8)}
SMALL_LABELS = {name: [*RNG.integers(1, 1000, len(images) - 1, endpoint=True), 1000]
                for name, images in SMALL.items()}


def small_imagenet(form, names=tuple(SMALL)):
  """{name: content} of files of the archives; sorted, so that ten comes before two."""
  files = {}
  for name in sorted(names):
    rows = np.ascontiguousarray(SMALL[name].transpose(0, 3, 1, 2)).reshape(-1, 192)
    if form == 'pickle':
      files[name] = pickled({b'data': rows, b'mean': np.zeros(192),
                             b'labels': [int(label) for label in SMALL_LABELS[name]]})
    else:
      file = io.BytesIO()
      np.savez(file, data=rows, labels=np.array(SMALL_LABELS[name]), mean=np.zeros(192))
      files[f'{name}.npz'] = file.getvalue()
  return files


@pytest.fixture
def few(monkeypatch):
  monkeypatch.setattr(imagenet_resized, 'NUM_IMAGES', {'train': 20, 'validation': 5})


@pytest.mark.parametrize('form, place', [
    ('pickle', 'archives'), ('npz', 'archives'), ('pickle', 'unpacked'), ('npz', 'unpacked')])
def test_small_imagenet_from_its_archives(form, place, few, tmp_path):
  source = tmp_path / 'raw'
  if place == 'unpacked':
    write(source / 'some', small_imagenet(form))
  else:
    source.mkdir()
    end = '_npz' if form == 'npz' else ''
    train = [*SMALL][:-1]
    write_zip(source / f'Imagenet8_train_part1{end}.zip', small_imagenet(form, train[:5]))
    write_zip(source / f'Imagenet8_train_part2{end}.zip', small_imagenet(form, train[5:]))
    write_zip(source / f'Imagenet8_val{end}.zip', small_imagenet(form, ['val_data']))
    write_zip(source / 'Imagenet16_val.zip', {'val_data': b'of another size'})
  name = 'imagenet_resized/8x8'
  said = prepare.prepare(name, source, tmp_path / 'data')
  assert '20 train and 5 validation images' in said
  loaded = {split: data.load(name, split, data_dir=str(tmp_path / 'data'))
            for split in ('train', 'test')}
  for split, files in (('train', [*SMALL][:-1]), ('test', ['val_data'])):
    np.testing.assert_array_equal(loaded[split].images, np.concatenate([*map(SMALL.get, files)]))
    np.testing.assert_array_equal(
        loaded[split].labels, np.concatenate([*map(SMALL_LABELS.get, files)]) - 1)
  # The classes of map_clsloc.txt of the authors, which are ImageNet's in another order.
  assert loaded['test'].class_names[:2] == ('n02119789', 'n02100735')
  assert {*loaded['test'].class_names} == {*imagenet.names()}
  theirs = tfds.data_source(name, split='validation', data_dir=tmp_path / 'data', download=False)
  for image, label, example in zip(SMALL['val_data'], SMALL_LABELS['val_data'], theirs):
    np.testing.assert_array_equal(example['image'], image)
    assert example['label'] == label - 1
  with pytest.raises(UserError, match='is there already'):
    prepare.prepare(name, source, tmp_path / 'data')


@pytest.mark.parametrize('change, message', [
    ({'train_data_batch_7': None}, '20 train images of 8x8, got 18; without train_data_batch_7'),
    ({'val_data': pickled({b'data': np.zeros((5, 192), np.uint8), b'labels': [0, 1, 2, 3, 4]})},
     r'val_data: labels, less 1: .*0\.\.999, got -1'),
    ({'val_data': pickled({b'data': np.zeros((5, 768), np.uint8), b'labels': [1] * 5})},
     r'val_data: images .*192\], got uint8 of shape \(5, 768\)'),
    ({'val_data': pickled({b'data': np.zeros((5, 192), np.uint8), b'labels': [1] * 4})},
     'val_data: labels must be 5'),
    ({'val_data': pickled({b'data': np.zeros((4, 192), np.uint8), b'labels': [1] * 4})},
     '5 validation images of 8x8, got 4'),
    ({'val_data': pickled({b'data': Evil(print, 'evil'), b'labels': [1]})}, 'asks for .*print'),
    ({'val_data': b'PK\3\4 cut off'}, 'val_data: cannot be read')])
def test_damaged_small_imagenet_is_refused(change, message, few, tmp_path, capsys):
  files = small_imagenet('pickle') | change
  files = {name: content for name, content in files.items() if content is not None}
  with pytest.raises(UserError, match=message):
    prepare.prepare('imagenet_resized/8x8', write(tmp_path / 'raw', files), tmp_path / 'data')
  assert 'evil' not in capsys.readouterr().out
  with pytest.raises(UserError, match='prepare imagenet_resized/8x8 --source=FOLDER'):
    data.load('imagenet_resized/8x8', 'train', data_dir=str(tmp_path / 'data'))


def test_small_imagenet_is_not_downloaded(tmp_path):
  with pytest.raises(UserError, match='--source must be a folder with Imagenet64_train_part1.zip'):
    prepare.prepare('imagenet_resized/64x64', None, tmp_path)
  with pytest.raises(UserError, match='--source must be .*gone'):
    prepare.prepare('imagenet_resized/64x64', tmp_path / 'gone', tmp_path)
