"""A tiny ImageNet in the files of the real one: TFDS's imagenet2012, made-up images.

  python tests/tiny_imagenet.py DIR

writes DIR/imagenet2012/5.1.0, which `--config.data.data_dir=DIR` then names. It has what is hard
about ImageNet: JPEGs of different sizes and shapes, some of them grey, 1,000 classes of which a
part is ever seen, several files a split, and a test split without labels.
"""

import argparse
import contextlib
import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

NUM_CLASSES = 1000
CLASSES = range(0, NUM_CLASSES, 100)  # those that have images


def picture(rng, label, sizes):
  """A PIL image of some size: stripes, whose direction and colour tell the class, and noise."""
  height, width = rng.integers(*sizes, 2, endpoint=True)
  kind = CLASSES.index(label)
  rows, columns = np.mgrid[:height, :width] / min(height, width)
  angle = np.pi * kind / len(CLASSES)
  wave = np.sin(25 * (rows * np.sin(angle) + columns * np.cos(angle)) + rng.uniform(0, 6))
  colour = np.array([kind % 3 == channel for channel in range(3)])
  values = 128 + wave[..., None] * (40 + 60 * colour) + rng.normal(0, 10, (height, width, 3))
  image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
  return image.convert('L') if rng.random() < 0.1 else image


def write_tfds(data_dir, name, features, examples, *, version='1.0.0', supervised_keys=None,
               num_shards=None):
  """Prepares a TFDS dataset without TensorFlow; examples: {split: feature dicts}.

  Those of a split are an iterable, or a dict by the keys that TFDS sorts them by.
  """

  def info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features),
                                 supervised_keys=supervised_keys)

  def split_generators(self, dl_manager):
    del self, dl_manager
    return {split: values.items() if isinstance(values, dict) else enumerate(values)
            for split, values in examples.items()}

  tfds.disable_progress_bar()
  with tfds.core.registered.skip_registration(), contextlib.redirect_stdout(io.StringIO()):
    builder = type(name, (tfds.core.GeneratorBasedBuilder,), {
      'VERSION': tfds.core.Version(version), 'name': name, '__module__': __name__,
      'url_infos': None,  # Nothing is downloaded; TFDS's search for URLs needs importlib_resources.
      '_info': info, '_split_generators': split_generators, '_generate_examples': None})
    builder(data_dir=str(data_dir), file_format='array_record').download_and_prepare(
      download_config=tfds.download.DownloadConfig(num_shards=num_shards))


def write(data_dir, num_train=200, num_validation=50, seed=0, sizes=(40, 90), num_shards=2):
  """Writes the dataset into `data_dir`, without TensorFlow.

  Args:
    data_dir: the folder of TFDS datasets.
    num_train: images of the split 'train'; ten classes in turn.
    num_validation: images of the split 'validation'.
    seed: of the images.
    sizes: (smallest, largest) height and width.
    num_shards: files a split.
  """

  def examples(split, number):
    rng = np.random.default_rng((seed, *split.encode()))
    for index in range(number):
      label = CLASSES[index % len(CLASSES)]
      jpeg = io.BytesIO()
      picture(rng, label, sizes).save(jpeg, 'JPEG', quality=90)
      jpeg.seek(0)
      yield {'image': jpeg, 'label': -1 if split == 'test' else label,
             'file_name': f'{split}_{index:08d}.JPEG'}

  numbers = {'train': num_train, 'validation': num_validation, 'test': num_shards}
  # Name, version and features of the stock dataset.
  write_tfds(
    data_dir, 'imagenet2012', {
      'image': tfds.features.Image(encoding_format='jpeg'),
      'label': tfds.features.ClassLabel(names=[f'n{i:08d}' for i in range(NUM_CLASSES)]),
      'file_name': tfds.features.Text(),
    }, {split: examples(split, number) for split, number in numbers.items()},
    version='5.1.0', supervised_keys=('image', 'label'), num_shards=num_shards)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description='Writes a tiny ImageNet in TFDS\'s format.')
  parser.add_argument('data_dir', metavar='DIR')
  parser.add_argument('--num_train', type=int, default=200)
  parser.add_argument('--num_validation', type=int, default=50)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--sizes', type=int, nargs=2, default=(40, 90),
                      help='smallest and largest height and width')
  write(**vars(parser.parse_args()))
