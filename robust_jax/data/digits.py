"""scikit-learn's handwritten digits as a TFDS dataset: on every machine, without a download."""

import contextlib
import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class Digits(tfds.core.GeneratorBasedBuilder):
  """1,797 handwritten digits of 8x8 pixels, bundled with scikit-learn.

  The values 0..16 become the grey levels round(255 v / 16). The split is fixed and stratified:
  of the images of each digit, in scikit-learn's order, every fifth is a test image, which makes
  1,442 training and 355 test images.

  Reference:
    Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part).
  """

  VERSION = tfds.core.Version('1.0.0')
  url_infos = None  # Nothing is downloaded; TFDS's search for URLs needs importlib_resources.

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      description='8x8 handwritten digits bundled with scikit-learn.',
      features=tfds.features.FeaturesDict({
        'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
        'label': tfds.features.ClassLabel(num_classes=10),
      }),
      supervised_keys=('image', 'label'),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {'train': self._generate_examples('train'), 'test': self._generate_examples('test')}

  def _generate_examples(self, split):
    from sklearn import datasets  # Imported here as it takes a second.
    digits = datasets.load_digits()
    seen = np.zeros(10, int)
    for key, (values, label) in enumerate(zip(digits.images, digits.target, strict=True)):
      seen[label] += 1
      if (seen[label] % 5 == 0) == (split == 'test'):
        png = io.BytesIO()
        Image.fromarray(np.rint(values * 255 / 16).astype(np.uint8)).save(png, 'PNG')
        png.seek(0)
        yield key, {'image': png, 'label': int(label)}


def prepare(data_dir):
  """Writes the dataset into `data_dir` if it does not have it yet.

  Several processes may do so at once: each writes its own temporary folder and renames it; the
  second one uses what the first has written.

  Args:
    data_dir: the folder of TFDS datasets; made where it is missing.

  Raises:
    OSError: it cannot be written.
  """
  builder = Digits(data_dir=data_dir, file_format='array_record')
  if builder.data_path.exists():
    return
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()
  except OSError:
    if not builder.data_path.exists():
      raise
