"""Results files, and the arithmetic of what they say."""

import json
import os
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from benchmarks import flops
from benchmarks.work import Work

# Largest difference of logits, over the largest logit, that rounding explains.
_ROUNDING = {'float32': 1e-3, 'tf32': 0.05, 'bfloat16': 0.3}
FOLDER = Path(__file__).parent / 'results'


class Spread(NamedTuple):
  """Several measurements of one quantity."""

  median: float
  low: float
  high: float


def spread(values):
  """Median, smallest and largest."""
  return Spread(median(values), min(values), max(values))


def path(name):
  """The file of the results called `name`."""
  return FOLDER / f'{name}.json'


def write(path, record):
  """Replaces the file at once, so that an interrupted run leaves a whole one."""
  path.parent.mkdir(exist_ok=True)
  temporary = path.with_suffix('.tmp')
  temporary.write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')
  os.replace(temporary, path)


def rates(line, name):
  """Images (of certification: draws) a second of a contestant in each round."""
  found = line['results'][name]
  items = Work(**line['work']).items * found['calls']
  return [items / seconds for seconds in found['seconds']]


def best_rival(record, line, precision):
  """The fastest, by its median, of PyTorch's contestants of a precision; None if there is none."""
  rivals = [name for name in line['results'] if record['contestants'][name]['kind'] == 'torch'
            and record['contestants'][name]['precision'] == precision]
  return max(rivals, key=lambda name: median(rates(line, name)), default=None)


def ratio(line, ours, rival):
  """Spread of our rate over the rival's, round by round: above 1, ours is faster."""
  return spread([a / b for a, b in zip(rates(line, ours), rates(line, rival), strict=True)])


def peaks(line, precision):
  """(FLOP/s of a matrix product, bytes/s of a copy) of each round; [] if they were not measured."""
  return [tuple(found[precision]) for found in line['peaks'] if precision in found]


def share_of_peak(record, line, name):
  """Spread of useful FLOP/s over those of a large matrix product, round by round."""
  each = flops.per_item(Work(**line['work']))
  measured = peaks(line, record['contestants'][name]['precision'])
  return spread([rate * each / peak for rate, (peak, _) in zip(rates(line, name), measured)])


def differences(checks):
  """How far each contestant is from the first that was asked the same, per quantity.

  Args:
    checks: {contestant: {quantity: array}}.

  Returns:
    {contestant: {quantity: {'max': largest absolute difference, 'scale': largest absolute entry,
    'share': share of the entries that differ by more than a thousandth of the scale}}}.
  """
  found, reference = {}, {}
  for name, arrays in checks.items():
    found[name] = {}
    for quantity, array in arrays.items():
      expected = reference.setdefault(quantity, array)
      difference = np.abs(array.astype(float) - expected)
      scale = float(np.abs(expected).max())
      found[name][quantity] = {'max': float(difference.max()), 'scale': scale,
                               'share': float(np.mean(difference > 1e-3 * scale))}
  return found


def disagreeing(record):
  """{(network, contestant)} whose logits are not those of the first contestant, up to rounding."""
  return {(line['work']['model'], name) for line in record['lines']
          for name, found in line['differences'].items() if 'logits' in found
          and found['logits']['max'] > found['logits']['scale'] *
          _ROUNDING[record['contestants'][name]['precision']]}
