"""What a bound log says: the robust accuracy of a network lies between two figures.

`bound.jsonl` holds a header and a line for each image and radius: the least margin z_y - max_j z_j
that an attack has found within the radius, the bound below all of them, and the verdict.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from robust_jax.analysis.attacked import AttackLog, robust
from robust_jax.errors import UserError
from robust_jax.workdir import records

VERDICTS = {'verified': ('bound', 'exact'), 'falsified': ('clean', 'attack', 'exact'),
            'unknown': (None,)}
# An attacked image may be so much farther from its image than epsilon, relatively, and a margin of
# it so much below the bound, in float32 that is summed in another order.
_ROUNDING = 1e-6
_OFF = 1e-4


class BoundLog(NamedTuple):
  """A bound log, one entry per image in the order of the file; radii ascend.

  Attributes:
    idx: [num_images] int64, the image's position in its split.
    label: [num_images] int64.
    predict: [num_images] int64, the class of the image itself; -1 where a logit is NaN.
    adversarial: [num_images, num_epsilons] int64, the class of an image within epsilon: another one
      than the label if there is one that is known.
    margin: [num_images, num_epsilons] float64, the least margin known within epsilon.
    lower: [num_images, num_epsilons] float64, the bound of all margins within epsilon; -inf where
      there is none, or it was not computed.
    verdict: [num_images, num_epsilons] str, 'verified', 'falsified' or 'unknown'.
    by: [num_images, num_epsilons] str, what the verdict is by: 'clean', 'attack', 'bound' or
      'exact'; '' where it is unknown.
    undefined: [num_images, num_epsilons] bool, where a gradient of the attack was not finite.
    seconds: [num_images, num_epsilons] float64.
    epsilons: [num_epsilons] float64, radii in pixel units of the norm.
    header: what was bounded and how.
  """

  idx: np.ndarray
  label: np.ndarray
  predict: np.ndarray
  adversarial: np.ndarray
  margin: np.ndarray
  lower: np.ndarray
  verdict: np.ndarray
  by: np.ndarray
  undefined: np.ndarray
  seconds: np.ndarray
  epsilons: np.ndarray
  header: dict[str, Any]

  @property
  def verified(self):
    """[num_images, num_epsilons] bool."""
    return self.verdict == 'verified'

  @property
  def falsified(self):
    """[num_images, num_epsilons] bool."""
    return self.verdict == 'falsified'

  @property
  def withstood(self):
    """[num_images, num_epsilons] bool: the image is right, and PGD has not changed that."""
    return ~np.isin(self.by, ('clean', 'attack'))


def read(path) -> BoundLog:
  """Reads `bound.jsonl`. Lines of an image that a crash left unfinished, the last, are dropped.

  Raises:
    UserError: no such file, or a malformed line, named as `file:line`.
  """
  header, entries = {}, {}

  def parse(line, number):
    entry = records.parse_header(line) if number == 1 else records.parse_json(line, number)
    if number == 1:
      header.update(entry['header'] if isinstance(entry.get('header'), dict) else {})
      if not {'epsilons', 'norm', 'method'} <= header.keys():
        raise records.NoHeaderError('must be a header with epsilons, norm and method, got '
                                    f'{records.short(line)}')
      return
    _check(entry, line)
    of_image = entries.setdefault(entry['idx'], [])
    expected = dict(enumerate(header['epsilons'])).get(len(of_image))
    if entry['epsilon'] != expected:
      raise ValueError(f'epsilon must be {expected}, as each of {header["epsilons"]} has a line an '
                       f'image, ascending, got {entry["epsilon"]}')
    if of_image and any(entry[name] != of_image[0][name] for name in ('label', 'predict')):
      raise ValueError(f'label and predict must be those of the line before, got '
                       f'{records.short(line)}')
    of_image.append(entry)

  records.read(path, parse)
  radii = len(header.get('epsilons', ()))
  short = [idx for idx, lines in entries.items() if len(lines) < radii]
  if short and short[0] != [*entries][-1]:
    raise UserError(f'{path}: image {short[0]} must have a line for each of {radii} radii, got '
                    f'{len(entries[short[0]])}')
  whole = [lines for idx, lines in entries.items() if idx not in short]
  number = lambda value, otherwise: otherwise if value is None else value
  of_image = lambda name: np.array([lines[0][name] for lines in whole], np.int64)
  grid = lambda values, dtype: np.array(values, dtype).reshape(len(whole), radii)
  of_line = lambda name, dtype, otherwise=None: grid(
      [[number(entry.get(name), otherwise) for entry in lines] for lines in whole], dtype)
  return BoundLog(
      *map(of_image, ('idx', 'label', 'predict')), of_line('adversarial', np.int64),
      of_line('margin', np.float64, np.nan), of_line('lower', np.float64, -np.inf),
      of_line('verdict', str), of_line('by', str, ''), of_line('undefined', bool, False),
      of_line('seconds', np.float64, 0.), np.array(header.get('epsilons', ()), np.float64), header)


def _check(entry, line):
  if not all(type(entry.get(name)) is int for name in ('idx', 'label', 'predict', 'adversarial')):
    raise ValueError(f'must have idx, label, predict and adversarial, got {records.short(line)}')
  number = lambda value: type(value) in (int, float) and math.isfinite(value)
  if not all(number(entry.get(name)) for name in ('epsilon', 'seconds')):
    raise ValueError(f'epsilon and seconds must be numbers, got {records.short(line)}')
  if not all(entry.get(name) is None or number(entry[name]) for name in ('margin', 'lower')):
    raise ValueError(f'margin and lower must be numbers or null, got {records.short(line)}')
  verdict, by = entry.get('verdict'), entry.get('by')
  if verdict not in VERDICTS or by not in VERDICTS[verdict]:
    raise ValueError(f"verdict must be verified by 'bound' or 'exact', falsified by 'clean', "
                     f"'attack' or 'exact', or unknown by null, got {verdict!r} by {by!r}")


def is_same_network(log: BoundLog, attack: AttackLog | None) -> bool:
  """Whether an attack log is of perturbations of the network and the balls that a bound log is of.

  Not of a smoothed classifier, nor of a ball that the box does not cut.
  """
  if attack is None:
    return False
  own = attack.header.get('attack', {})
  return (own.get('norm') == log.header['norm'] and own.get('order') != 'ball_only'
          and not attack.header.get('smoothed') and not attack.header.get('transfer_from')
          and all(attack.header.get(name) == log.header.get(name)
                  for name in ('classifier_sha256', 'checkpoint_step')))


def broken_within(log: BoundLog, attack: AttackLog | None):
  """[num_images, num_epsilons] bool: an attack log of the same network has an image within epsilon.

  False where it lacks the image.
  """
  broken = np.zeros(log.verdict.shape, bool)
  if is_same_network(log, attack):
    _, ours, theirs = np.intersect1d(log.idx, attack.idx, return_indices=True)
    within = attack.epsilons[:, None] <= log.epsilons * (1 + _ROUNDING)
    broken[ours] = ~robust(attack)[theirs] @ within
  return broken


def bound_crossings(log: BoundLog, attack: AttackLog | None = None):
  """[num_images, num_epsilons] bool: an attack has found what the bound excludes.

  A margin below the bound, or a misclassified image where there is none.

  Args:
    log: the bound log.
    attack: None, or a log of the attack stage; one of another network or norm says nothing.
  """
  below = log.lower > log.margin + _OFF * (1 + np.abs(log.margin))
  misclassified = (log.adversarial != log.label[:, None]) | broken_within(log, attack)
  proved = (log.lower > 0) | log.verified
  return below | (proved & misclassified)


def robust_interval(log: BoundLog, attack: AttackLog | None = None):
  """(verified, not broken): between these shares of the images robust accuracy lies.

  Args:
    log: the bound log.
    attack: as of `bound_crossings`; what it has broken is broken.

  Returns:
    two arrays [num_epsilons]; NaN without images.
  """
  if not len(log.idx):
    return np.full(log.epsilons.shape, np.nan), np.full(log.epsilons.shape, np.nan)
  broken = log.falsified | broken_within(log, attack)
  return log.verified.mean(axis=0), np.mean(~broken, axis=0)


def verified_radius(log: BoundLog):
  """[num_images] float64: the largest radius of the log that is verified; 0 where none is."""
  return np.max(np.where(log.verified, log.epsilons, 0.), axis=1, initial=0.)
