"""What verifications of logs share: is a log of these parameters, and of these images?"""

from pathlib import Path

import numpy as np

from robust_jax import workdir as workdirs
from robust_jax.errors import MismatchError
from robust_jax.stages import images
from robust_jax.workdir import records

# Images that are read at a time for their labels.
_BATCH = 64


def check_origin(path, logged, origin):
  """Raises MismatchError unless a log's header, `logged`, names the parameters of `origin`."""
  for name, now in origin.items():
    if logged.get(name) != now:
      raise MismatchError(f'{path}: the log is of other parameters: {name} is {now} but '
                          f'{logged.get(name)} in the log')


def spread(values, num):
  """num of a list of values (0: all), evenly spread."""
  num = min(num or len(values), len(values))
  return [values[i] for i in np.linspace(0, len(values) - 1, num).round().astype(int)]


def is_finished(workdir, stage):
  """Whether a stage of the workdir is done, so that no image of it may be missing."""
  return workdirs.stages(Path(workdir)).get(stage, {}).get('status') == 'done'


# Each of these gives (idx, line) of what is wrong.


def compare_images(wanted, known, finished, *, section, stage, done):
  """Images that were not asked for; those that are missing once the stage is finished.

  Args:
    wanted: indices of the images that config.SECTION asks for.
    known: those that the log has.
    finished: whether the stage is done.
    section, stage: their names.
    done: what an image is that has been through the stage.
  """
  for idx in sorted({*known} - {*wanted}):
    yield idx, f'it is not among the images of config.{section}'
  missing = [idx for idx in wanted if idx not in known]
  if missing and not finished:
    print(f'verify: {len(missing)} of {len(wanted)} images are not {done} yet')
  elif missing:
    yield from ((idx, f'it is missing, and the {stage} stage is done') for idx in missing)


def compare_labels(run, logged):
  """Labels, {idx: label}, that are not those of the dataset."""
  for chunk in images.batches(run.test_data, [*logged], _BATCH, pad=False):
    for idx, label in zip(chunk.index.tolist(), chunk.labels.tolist()):
      if logged[idx] != label:
        yield idx, f'label: {logged[idx]} is logged; the dataset has {label}'


def print_problems(*problems, most=20):
  """Prints the first lines of several {idx: [line]}, and how many more there are."""
  lines = [f'image {idx}: {text}' for each in problems
           for idx, found in sorted(each.items()) for text in dict.fromkeys(found)]
  print(*lines[:most], sep='\n', end='\n' if lines else '')
  if len(lines) > most:
    print(f'and {len(lines) - most} lines more')


def essential(environment):
  """An environment as a log has it, its compiler flags without those that change no result."""
  environment = records.plain(environment)
  if 'flags' not in environment:
    return environment
  flags = environment['flags'].split()
  return {**environment, 'flags': [flag for flag in flags if 'device_count' not in flag]}
