"""What processes must agree about before they compute as one: command, code, settings, data."""

import hashlib
import json
import os
import platform
from pathlib import Path

import jax
import numpy as np

import robust_jax
from robust_jax import backend, data, named, workdir
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
          for name in ('workdir', 'stages', 'devices', 'shard')}
  own |= {f'the version of {name}': value for name, value in workdir.versions().items()}
  own['the code of robust_jax (sha256)'] = _code()
  processes.check_same('command', json.loads(json.dumps(own, default=str)), _describe)


def check_environment(devices):
  """Raises UserError where another process computes with other devices or settings than the first.

  Of its environment what changes compiled programs and random numbers.
  """
  if processes.count() == 1:
    return
  own = workdir.environment(devices)
  found = {
      'the device': own['device'], 'the processor': platform.machine(),
      # The number of simulated devices follows from each machine's cores, and is compared itself.
      'XLA_FLAGS': sorted(flag for flag in own['flags'].split() if not flag.startswith(
          ('--xla_dump', '--xla_force_host_platform_device_count'))),
      'LIBTPU_INIT_ARGS': os.environ.get('LIBTPU_INIT_ARGS', ''),
      'jax_default_matmul_precision': own['matmul_precision'],
      'jax_default_prng_impl': jax.config.jax_default_prng_impl,
      backend.SWITCH: os.environ.get(backend.SWITCH, ''),
      'oneDNN': bool(backend.layers()) and backend.cpu().has_convolutions()}
  processes.check_same('environment', found, _describe)


def check_data(run, wanted):
  """Raises UserError where another process reads other examples or weights than the first.

  Some examples of each split that the `wanted` stages need, and all bytes of files of weights,
  labels and functions of one's own.
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
  for name, value in flat(run.config).items():
    if value and name in ('weights', 'evaluation.transfer_from', 'extra.labels',
                          'data.tangents_file', 'data.targets_file', 'attack_image.file'):
      found[f'config.{name}'] = workdir.fingerprint(named.file(value, f'config.{name}'))
    elif isinstance(value, str) and ':' in value and (source := named.source(value)):
      found[f'the file of config.{name}'] = workdir.fingerprint(source)

  def describe(number, first, other):
    name = next(name for name in first if first[name] != other.get(name))
    return f'{name} must be the same in all processes, is another one in process {number} than in 0'

  processes.check_same('data', found, describe)


def _describe(number, first, other):
  name = next(name for name in {**first, **other} if first.get(name) != other.get(name))
  return (f'{name} must be the same in all processes, got {first.get(name)} in process 0, '
          f'{other.get(name)} in process {number}')


def _code():
  """The sum of the project's files."""
  total = hashlib.sha256()
  for folder in (Path(robust_jax.__file__).parent, Path(__file__).parent):
    for path in sorted(folder.rglob('*.py')):
      total.update(path.read_bytes())
  return total.hexdigest()[:16]
