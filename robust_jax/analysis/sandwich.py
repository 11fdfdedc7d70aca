"""What a sandwich log says: between which radii the robustness of each certified image lies.

`sandwich.jsonl` holds a header and one line an image: its certified l2 radius and the smallest one
at which an adversarial example was confirmed, with the votes of all points that were judged.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from robust_jax.attacks import confirmed
from robust_jax.certification.log import Log
from robust_jax.errors import UserError
from robust_jax.workdir import records


class SandwichLog(NamedTuple):
  """A sandwich log, one entry per image in the order of the file.

  Attributes:
    idx: [num_images] int64, the image's position in its split.
    label: [num_images] int64.
    predict: [num_images] int64, the certified class; -1 abstains.
    certified: [num_images] float64, the certified l2 radius of that class, pixel units.
    adversarial: [num_images] float64, the l2 norm of the smallest perturbation that is confirmed to
      change the class from the label; 0 where it is another one already, inf where none was found.
    tests: of each image [[radius, draws, votes of the label, votes of the most frequent other
      class], ...]; see `attacks.smallest`.
    header: what was attacked and how.
  """

  idx: np.ndarray
  label: np.ndarray
  predict: np.ndarray
  certified: np.ndarray
  adversarial: np.ndarray
  tests: list
  header: dict[str, Any]

  @property
  def correct(self):
    """[num_images] bool: the certified class is the label."""
    return self.predict == self.label


def read(path) -> SandwichLog:
  """Reads `sandwich.jsonl`. A last line that a crash left unfinished is dropped.

  Raises:
    UserError: no such file, or a malformed line, named as `file:line`.
  """
  header = {}

  def parse(line, number):
    entry = records.parse_header(line) if number == 1 else records.parse_json(line, number)
    if number == 1:
      header.update(entry['header'])
      if not {'sandwich', 'n', 'alpha', 'certified_alpha', 'num_classes'} <= header.keys():
        raise records.NoHeaderError('must be a header with sandwich, n, alpha, certified_alpha and '
                                    f'num_classes, got {records.short(line)}')
      return ()
    return _row(entry, line)

  rows = list(filter(None, records.read(path, parse)))
  idx, label, predict, certified, adversarial, tests = zip(*rows) if rows else ((),) * 6
  if len({*idx}) < len(idx):
    raise UserError(f'{path}: an idx occurs more than once')
  return SandwichLog(*(np.array(column, np.int64) for column in (idx, label, predict)),
                     *(np.array(column, np.float64) for column in (certified, adversarial)),
                     list(tests), header)


def _row(entry, line):
  if not all(type(entry.get(name)) is int for name in ('idx', 'label', 'predict')):
    raise ValueError(f'must have idx, label and predict, got {records.short(line)}')
  radii = [entry.get('certified'), entry.get('adversarial', 0)]
  radii[1] = math.inf if radii[1] is None else radii[1]
  if not all(type(radius) in (int, float) and radius >= 0 for radius in radii):
    raise ValueError('certified and adversarial must be radii >= 0, adversarial null where there '
                     f'is none, got {records.short(line)}')
  tests = entry.get('tests')
  if not isinstance(tests, list) or not all(
      isinstance(test, list) and len(test) == 4 and all(
          type(value) in (int, float) and value >= 0 for value in test)
      and test[2] + test[3] <= test[1] for test in tests):
    raise ValueError('tests must be lists of radius, draws and two numbers of votes, got '
                     + records.short(str(tests)))
  return entry['idx'], entry['label'], entry['predict'], *radii, tests


def crossings(log: SandwichLog):
  """[num_images] bool: an adversarial example was confirmed within the certified radius."""
  return log.correct & (log.adversarial < log.certified)


def radius_ratios(log: SandwichLog):
  """Adversarial over certified radius, of the images that have both: [number] float64."""
  both = log.correct & (log.certified > 0) & np.isfinite(log.adversarial)
  return log.adversarial[both] / log.certified[both]


def sandwich_at_once(log: SandwichLog, certified: Log | None = None) -> SandwichLog:
  """The log with adversarial examples that hold all at once: alpha shared among the images.

  Each image's points are judged again from their votes at alpha / num_images, so that by the union
  bound the probability that any adversarial example of the log is none is at most alpha. Radii
  grow, or are inf where nothing is confirmed any more. (The points are those that the search at
  alpha has led to; whatever led to them, their draws are their own.)

  Args:
    log: a sandwich log.
    certified: None, or the certificates of the same images that hold all at once, as
      `simultaneous` gives them; they take the place of the log's.

  Raises:
    UserError: an image has no certificate in `certified`.
  """
  alpha = log.header['alpha'] / max(len(log.idx), 1)
  level = confirmed.level(alpha, log.header['sandwich']['halvings'], log.header.get('noise'))
  radius = np.array([min((test[0] for test in tests if confirmed.beaten(
      np.array(test[2:]), alpha=level, num_classes=log.header['num_classes'])), default=np.inf)
      for tests in log.tests])
  # What is misclassified already has no points: it is its certificate that says so.
  radius = np.where((log.predict != log.label) & (log.predict >= 0), 0, radius)
  log = log._replace(adversarial=radius, header={**log.header, 'alpha': alpha})
  if certified is None:
    return log
  rows = {idx: row for row, idx in enumerate(certified.idx.tolist())}
  missing = [idx for idx in log.idx.tolist() if idx not in rows]
  if missing:
    raise UserError(f'certified must have every image of the log, got none of idx {missing[0]}')
  order = np.array([rows[idx] for idx in log.idx.tolist()], int)
  predict = certified.predict[order]
  wrong = (predict != log.label) & (predict >= 0)
  radius = np.where(wrong, 0, np.where((radius == 0) & ~wrong, np.inf, radius))
  return log._replace(predict=predict, certified=certified.radius[order], adversarial=radius,
                      header={**log.header, 'certified_alpha': certified.settings['alpha']})
