"""The label stage: labels or votes that the run's classifier gives to the images of a dataset."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from robust_jax import data, keys, losses, smoothing
from robust_jax import workdir as workdirs
from robust_jax.devices import parallel, processes
from robust_jax.errors import UserError
from robust_jax.stages import weights

# Noisy copies of each image that vote, for a network that was trained with noise.
NUM_NOISE = 100


def label(run, workdir):
  """Writes config.label.output.

  A .tsv says whose labels they are, then has the columns idx and label; a .npy has `votes`.

  Raises:
    UserError: the dataset does not fit the network, or an image has no label.
  """
  check(run)
  settings = run.label
  classifier = weights.load(run, workdir)
  reading = {**run.data.reading, 'data_dir': settings.data_dir or run.data.data_dir}
  dataset = data.load(settings.name or run.data.name, settings.split, **reading)
  if dataset.image_shape != run.test_data.image_shape:
    raise UserError(f'config.label.name: the images of {dataset.name!r} must have the shape '
                    f'{run.test_data.image_shape} of the network, got {dataset.image_shape}')
  num_noise = settings.num_noise
  if num_noise is None:  # A training noise of None is unknown.
    num_noise = NUM_NOISE if run.sigma > 0 and classifier.training_noise != 0 else 0
  is_soft = Path(settings.output).suffix == '.npy'
  if is_soft and not num_noise:
    raise UserError('config.label.num_noise must be at least 1 for a .npy of votes, got 0')
  found = (votes if is_soft else predict)(
      classifier.logits_fn, dataset, sigma=run.sigma, num_noise=num_noise,
      batch_size=_batch_size(run), devices=run.devices)
  # A copy whose logits are not numbers has no vote.
  classes = np.where(found.sum(axis=1) > 1 - 0.5 / num_noise, found.argmax(axis=1), -1
                     ) if is_soft else found
  unlabelled = np.flatnonzero(classes < 0)
  if len(unlabelled):
    raise UserError(f'config.label.name: image {unlabelled[0]} of {dataset.name!r} '
                    f'{dataset.split} must have logits that are numbers, got NaN')
  if processes.index():
    return
  if is_soft:
    file = io.BytesIO()
    np.save(file, found)
    content = file.getvalue()
  else:
    lines = [f'{index}\t{value}\n' for index, value in enumerate(classes)]
    content = ''.join([f'{data.extra.title(dataset.name, dataset.split)}\n', 'idx\tlabel\n',
                       *lines]).encode()
  workdirs.write_bytes(settings.output, content)
  copies = f', by {num_noise} noisy copies each' if num_noise else ''
  agreement = ''
  if dataset.class_names == run.test_data.class_names:
    right = np.mean(classes == np.asarray(dataset.labels[:]))
    agreement = f'; {right:.1%} are those of the dataset'
  what = 'votes' if is_soft else 'labels'
  print(f'{settings.output}: {len(classes)} {what}{copies}{agreement}')


def _batch_size(run):
  """At most 256, of which each goes through the network num_noise times, for all the devices."""
  num_devices = len(run.devices)
  return max(min(256, run.train.eval_batch_size) // num_devices, 1) * num_devices


def check(run):
  """Raises UserError where config.label is not enough to write labels with `run`."""
  output, num_noise = run.label.output, run.label.num_noise
  if output is None or Path(output).suffix not in ('.tsv', '.npy'):
    raise UserError(f'config.label.output must be a file .tsv or .npy, got {output!r}')
  if num_noise and not run.sigma > 0:
    raise UserError('config.label.num_noise must be 0 where config.sigma and config.certify.sigma '
                    f'are, got {num_noise}')


def predict(logits_fn, dataset, *, sigma=0., num_noise=0, batch_size=256, devices=None):
  """The classes of a dataset's images.

  Args:
    logits_fn: images -> logits.
    dataset: `data.Dataset`.
    sigma: standard deviation of the noise of a smoothed classifier, in pixel units.
    num_noise: noisy copies of each image that vote; 0: the image itself, without noise.
    batch_size: images in one pass, a multiple of the devices.
    devices: list of devices; the first one if None.

  Returns:
    [num_examples] int; -1 where no logits are numbers. The noise of an image depends on its index
    alone.
  """
  logits_fn = smoothing.as_pytree(logits_fn)

  def classify(replicated, batch):
    logits_fn, sigma = replicated
    noise = smoothing.sample_noise(keys.fold_in(keys.root(0), batch.index), batch.images,
                                   sigma=sigma, num_noise=num_noise) if num_noise else None
    return smoothing.victim(logits_fn, noise).predict(batch.images)

  classify = parallel.map_rows(classify, devices or jax.local_devices()[:1])
  return np.concatenate([classify((logits_fn, sigma), batch)[batch.mask > 0]
                         for batch in data.eval_batches(dataset, batch_size=batch_size)])


def votes(logits_fn, dataset, *, sigma, num_noise, batch_size=256, devices=None):
  """The share of each class among the predictions of an image's noisy copies.

  Arguments as `predict`, num_noise at least 1; the noisy copies are the same, one after the other.

  Returns:
    [num_examples, classes] float32; copies whose logits are not numbers have no share.
  """
  logits_fn = smoothing.as_pytree(logits_fn)

  def count(replicated, batch):
    logits_fn, sigma = replicated
    example_keys = keys.fold_in(keys.root(0), batch.index)

    def add(i, counts):
      # Draw i of `smoothing.sample_noise`.
      noise = sigma * jax.vmap(lambda key: keys.standard_normal(key, batch.images.shape[1:]))(
          keys.fold_in(example_keys, i))
      classes = losses.predicted(logits_fn(batch.images + noise))
      return counts + jax.nn.one_hot(classes, dataset.num_classes)

    none = jnp.zeros((len(batch.images), dataset.num_classes))
    return jax.lax.fori_loop(0, num_noise, add, none) / num_noise

  count = parallel.map_rows(count, devices or jax.local_devices()[:1])
  return np.concatenate([count((logits_fn, sigma), batch)[batch.mask > 0]
                         for batch in data.eval_batches(dataset, batch_size=batch_size)])
