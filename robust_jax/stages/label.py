"""Labels of a dataset by a trained workdir, for config.extra.labels:

  python -m robust_jax.stages.label WORKDIR --output=FILE.tsv --name=DATASET [--split=train]
      [--data_dir=DIR] [--num_noise=M]
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from robust_jax import data, keys, smoothing
from robust_jax import workdir as workdirs
from robust_jax.errors import UserError
from robust_jax.workdir import checkpoint

# Draws that vote unless it is said how many, for a network that was trained with noise.
NUM_NOISE = 100


def label(logits_fn, dataset, *, sigma=0., num_noise=0, batch_size=256):
  """The predictions of a classifier on a dataset.

  Args:
    logits_fn: images -> logits.
    dataset: `data.Dataset`.
    sigma: noise of a smoothed classifier, in pixel units.
    num_noise: draws of noise an image that vote; 0: the classifier itself, without noise.
    batch_size: images in one pass.

  Returns:
    [num_examples] int. The draws of an image depend on its index alone.
  """
  if not isinstance(logits_fn, jax.tree_util.Partial):
    logits_fn = jax.tree_util.Partial(logits_fn)
  predict = jax.jit(_predict, static_argnames='num_noise')
  found = []
  for batch in data.eval_batches(dataset, batch_size=batch_size):
    classes = predict(logits_fn, batch.images, batch.index, sigma, num_noise=num_noise)
    found.append(np.asarray(classes)[batch.mask > 0])
  return np.concatenate(found)


def _predict(logits_fn, images, index, sigma, *, num_noise):
  if not num_noise:
    return jnp.argmax(logits_fn(images), axis=-1)
  noise = smoothing.sample_noise(keys.fold_in(keys.root(0), index), images, sigma=sigma,
                                 num_noise=num_noise)
  return smoothing.vote(logits_fn, images, noise)


def main(argv=None):
  """Writes the file: whose labels they are; the columns idx and label, a line an example."""
  parser = argparse.ArgumentParser(
      prog='python -m robust_jax.stages.label', description='Labels of a dataset by a workdir.')
  parser.add_argument('workdir', help='of a finished training')
  parser.add_argument('--output', required=True, help='the file .tsv to be written')
  parser.add_argument('--name', help="dataset, as config.data.name; default: the workdir's own")
  parser.add_argument('--split', default='train')
  parser.add_argument('--data_dir', help="default: the workdir's own")
  parser.add_argument('--num_noise', type=int,
                      help="draws of the workdir's noise that vote; 0: no noise. Default: "
                      f'{NUM_NOISE} where it was trained with noise and has a sigma, or else 0')
  words = parser.parse_args(argv)
  network, variables, info = checkpoint.load(words.workdir)
  reading = {**info['data'], **({'data_dir': words.data_dir} if words.data_dir else {})}
  dataset = data.load(words.name or info['dataset'], words.split, **reading)
  if list(dataset.image_shape) != info['image_shape']:
    raise UserError(f'{dataset.name} has images {list(dataset.image_shape)}; '
                    f'{info["image_shape"]}, as those of {words.workdir}, are allowed')
  if not Path(words.output).name.endswith('.tsv'):
    raise UserError(f'--output is {words.output}; a file .tsv is allowed')
  if words.num_noise is None:
    noisy = info['sigma'] > 0 and info.get('training_noise', info['sigma']) > 0
    words.num_noise = NUM_NOISE if noisy else 0
  if words.num_noise < 0 or (words.num_noise and not info['sigma'] > 0):
    raise UserError(f'--num_noise is {words.num_noise}, with sigma {info["sigma"]} of '
                    f'{words.workdir}; 0, or with a sigma above 0 more, is allowed')
  classes = label(network.eval_logits(variables), dataset, sigma=info['sigma'],
                  num_noise=words.num_noise)
  lines = [f'{index}\t{value}\n' for index, value in enumerate(classes)]
  workdirs.write_bytes(words.output, ''.join(
      [f'{data.extra.title(dataset)}\n', 'idx\tlabel\n', *lines]).encode())
  votes = f', by {words.num_noise} noisy copies each' if words.num_noise else ''
  told = f'{words.output}: {len(classes)} labels{votes}'
  if list(dataset.class_names) == info['class_names']:
    agreement = np.mean(classes == np.asarray(dataset.labels[:]))
    told += f'; {agreement:.1%} are those of the dataset'
  print(told)


if __name__ == '__main__':
  try:
    main()
  except UserError as mistake:
    print(f'error: {mistake}', file=sys.stderr)
    sys.exit(mistake.exit_status)
