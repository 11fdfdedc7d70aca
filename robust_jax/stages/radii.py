"""The radii that training has learnt, one of each training example."""

import io
from pathlib import Path

import numpy as np

from robust_jax import data
from robust_jax import workdir as workdirs


def save(run, workdir, radius):
  """Writes radii.npz: index, label, radius [num_train], and the images at both ends.

  `shown` has the indices of config.evaluation.gallery images with the smallest and as many with
  the largest radii, of which some are given twice where there are few; `images` are theirs.

  Args:
    run: the Run.
    workdir: its folder.
    radius: [num_train].
  """
  dataset = run.train_data
  order = np.argsort(radius, kind='stable')
  number = run.evaluation.gallery
  shown = np.concatenate([order[:number], order[::-1][:number]])
  file = io.BytesIO()
  np.savez_compressed(
      file, index=np.arange(len(radius)), label=np.asarray(dataset.labels), radius=radius,
      shown=shown, images=data.take(dataset, shown).images,
      norm=run.config['method']['attack'].get('norm', ''))
  workdirs.write_bytes(Path(workdir) / 'radii.npz', file.getvalue())
