"""What several processes must agree about before they compute as one: the command and the data."""

import hashlib
import json

import numpy as np

from robust_jax import data, named, workdir
from robust_jax.config.sections import flat
from robust_jax.devices import processes

# Examples of a split that are compared.
_NUM_COMPARED = 16


def check_command(given):
  """Raises UserError where another process is to do something else than the first.

  Args:
    given: `flags.CommandLine`.
  """
  own = {f'config.{name}': value for name, value in flat(given.config.to_dict()).items()}
  own |= {f'--{name}': str(getattr(given, name))
          for name in ('workdir', 'stages', 'redo', 'devices', 'shard')}
  own |= {f'the version of {name}': value for name, value in workdir.versions().items()}

  def describe(number, first, other):
    name = next(name for name in {**first, **other} if first.get(name) != other.get(name))
    return (f'{name} must be the same in all processes, got {first.get(name)} in process 0, '
            f'{other.get(name)} in process {number}')

  processes.check_same('command', json.loads(json.dumps(own, default=str)), describe)


def check_data(run, wanted):
  """Raises UserError where another process reads other examples or weights than the first.

  Some examples of each split that the `wanted` stages need, and all bytes of a file of weights.
  """
  if processes.count() == 1:
    return
  found = {}
  for split in ('test', 'train') if 'train' in wanted and run.trainable else ('test',):
    dataset = getattr(run, f'{split}_data')
    if not dataset.num_examples:  # Of an image file no dataset is needed.
      continue
    some = np.unique(np.linspace(0, dataset.num_examples - 1, _NUM_COMPARED).astype(int))
    batch = data.take(dataset, some)
    found[f'the {split} split of {run.data.name!r}'] = [
        dataset.num_examples, hashlib.sha256(batch.images.tobytes()).hexdigest()[:16],
        batch.labels.tolist()]
  for name in ('weights', 'evaluation.transfer_from'):
    if path := flat(run.config)[name]:
      found[f'config.{name}'] = workdir.fingerprint(named.file(path, f'config.{name}'))

  def describe(number, first, other):
    name = next(name for name in first if first[name] != other.get(name))
    return f'{name} must be the same in all processes, is another one in process {number} than in 0'

  processes.check_same('data', found, describe)
