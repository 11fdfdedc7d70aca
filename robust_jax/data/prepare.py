"""Published datasets as files to read, without TensorFlow: see `python -m robust_jax.data`."""

import http.client
import os
import shutil
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from robust_jax.data import archives, arrays, datasets, imagenet_resized, imagenet_tars
from robust_jax.errors import UserError

_TORONTO = 'https://www.cs.toronto.edu/~kriz/'
_MNIST_FILES = ('train-images-idx3-ubyte.gz', 'train-labels-idx1-ubyte.gz',
                't10k-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz')
# What is downloaded: the folder of the files on the web, and the files with their MD5.
DOWNLOADS = {
    'cifar10': (_TORONTO, {'cifar-10-python.tar.gz': 'c58f30108f718f92721af3b95e74349a'}),
    'cifar100': (_TORONTO, {'cifar-100-python.tar.gz': 'eb9058c3a382ffc7106e4002c42a8d85'}),
    'mnist': ('https://ossci-datasets.s3.amazonaws.com/mnist/', dict(zip(_MNIST_FILES, (
        'f68b3c2dcbeaaa9fbdd348bbdeb94873', 'd53e105ee54ea40749a09fcbcd1e9432',
        '9fb629c4189551a2d022fa330f9573f3', 'ec29112dd5afa0611ce80d1b7f02629c')))),
    'fashion_mnist': (
        'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/', dict(zip(_MNIST_FILES, (
            '8d4fb7e6c68d591d4c3dfef9ec88bf0d', '25c81989df183df01b3e8a0aad5dffbe',
            'bef4ecab320f06d8554ea6380940ec79', 'bb300cfdad3c16e7a12a480ee83cd310')))),
    'svhn_cropped': ('http://ufldl.stanford.edu/housenumbers/', {
        'train_32x32.mat': 'e26dedcc434d2e4c54c9b2d4a06d8373',
        'test_32x32.mat': 'eb5a983be6a315427106f1b164d9cef3'}),
}
# Of other forms that --source may be in.
_MD5 = {
    'cifar10': {'cifar-10-binary.tar.gz': 'c32a1d4ab5d03f1284b67883e8d87530',
                'cifar-10-matlab.tar.gz': '70270af85842c9e89bb428ec9976c926'},
    'cifar100': {'cifar-100-binary.tar.gz': '03b5dce01913d631647c71ecec9e9cb8',
                 'cifar-100-matlab.tar.gz': '6a4bfa1dcd5c9453dda6bb54194911f4'},
}
_TIMEOUT = 30
_IMAGENET = [split.tar for split in imagenet_tars.SPLITS.values()]
NAMES = (*DOWNLOADS, imagenet_tars.NAME, *imagenet_resized.NAMES)


def prepare(name, source=None, output=None):
  """Writes a published dataset into one file that `datasets.load` takes, or a folder of ImageNet.

  Args:
    name: one of `NAMES`.
    source: a file or archive as it was published, or a folder that has it, packed or not (see
      `archives`), or a .npz with arrays as Keras names them; None: it is downloaded. Of
      ImageNet a folder that has its two tar files, or the archives of it downsampled.
    output: the file .npz; NAME.npz in this folder if None. Of ImageNet the folder of prepared TFDS
      datasets; TFDS's own if None.

  Returns:
    A line on what was written.

  Raises:
    UserError: a name that is not known, a file that exists or cannot be read or written, a download
      that fails or is not what was published.
  """
  if name == imagenet_tars.NAME:
    if source is None:
      raise UserError(f'--source must be a folder with {" and ".join(_IMAGENET)}, from '
                      'image-net.org; they cannot be downloaded without an account')
    return imagenet_tars.prepare(*(Path(source) / tar for tar in _IMAGENET),
                                 output or tfds.core.constants.DATA_DIR)
  if name in imagenet_resized.NAMES:
    if source is None:
      raise UserError('--source must be a folder with Imagenet64_train_part1.zip and so on, from '
                      'image-net.org; they cannot be downloaded without an account')
    return imagenet_resized.prepare(name, source, output or tfds.core.constants.DATA_DIR)
  output = Path(f'{name}.npz' if output is None else output).expanduser()
  if output.suffix != '.npz' or output.exists() or not output.parent.is_dir():
    raise UserError(f'--output must be a new file .npz in a folder that exists, got {output}')
  if source is None:
    with tempfile.TemporaryDirectory() as folder:
      found = archives.read(name, _download(name, Path(folder)))
  else:
    found = _read_source(name, Path(source).expanduser())
  _check(found, output if source is None else source)
  preset = datasets.DATASETS.get(name, datasets.Preset())
  if preset != datasets.Preset():
    found |= {'mean': np.array(preset.mean), 'std': np.array(preset.std)}
  _write(output, found)
  train, test = (found[f'{split}_images'] for split in ('train', 'test'))
  shape = 'x'.join(map(str, train.shape[1:]))
  return (f'{output}: {len(train):,} train and {len(test):,} test images of {shape}, '
          f'{len(found["class_names"])} classes; '
          f'--config.data.name={output} takes it')


def _read_source(name, source):
  if source.suffix == '.npz':
    train, test = (arrays.read(source, split) for split in ('train', 'test'))
    names = train.class_names or archives.LAYOUTS[name][0].class_names
    return {'train_images': train.images, 'train_labels': train.labels,
            'test_images': test.images, 'test_labels': test.labels,
            'class_names': np.array([*map(str, range(train.num_classes))] if callable(names)
                                    else names)}
  if not source.exists():
    raise UserError(f'--source must be a file or folder of {name}, got {source}, which does not '
                    'exist')
  known = {**DOWNLOADS[name][1], **_MD5.get(name, {})}
  paths = [source]
  if source.is_dir():
    paths += [source / file for file in known if (source / file).is_file()]
  for path in paths:
    if path.name in known and path.is_file() and (md5 := archives.md5(path)) != known[path.name]:
      print(f'warning: {path} is not the file that was published: its MD5 is {md5}, not '
            f'{known[path.name]}', file=sys.stderr)
  return archives.read(name, paths)


def _check(found, place):
  num_classes = len(found['class_names'])
  for split in ('train', 'test'):
    images, labels = f'{split}_images', f'{split}_labels'
    found[images] = arrays.as_images(found[images], f'{place}: {images}')
    found[labels] = arrays.as_labels(found[labels], num_classes, f'{place}: {labels}')
    arrays.check_lengths(found[images], found[labels], f'{place}: {labels}')


def _download(name, folder):
  """The paths of the published files, downloaded into a folder and compared with their MD5."""
  place, sums = DOWNLOADS[name]
  for file, md5 in sums.items():
    print(f'{place}{file}', flush=True)
    try:
      with (urllib.request.urlopen(place + file, timeout=_TIMEOUT) as answer,
            (folder / file).open('wb') as copy):
        shutil.copyfileobj(answer, copy)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError.
      reason = getattr(error, 'reason', error)
      raise UserError(f'{place}{file} cannot be downloaded ({" ".join(str(reason).split())}); get '
                      f'it in another way, and give its place: --source=FILE or FOLDER') from error
    if (found := archives.md5(folder / file)) != md5:
      raise UserError(f'{place}{file} is not the file that was published: its MD5 is {found}, not '
                      f'{md5}')
  return [folder / file for file in sums]


def _write(output, found):
  """Writes the arrays as a whole or not at all."""
  new = Path(f'{output}.new')
  try:
    with new.open('wb') as file:
      np.savez(file, **found)
    os.replace(new, output)
  except OSError as error:
    new.unlink(missing_ok=True)
    raise UserError(f'{output} cannot be written ({error.strerror})') from error
