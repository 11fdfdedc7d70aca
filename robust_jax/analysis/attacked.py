"""What an attack log says: the accuracy that is left under attack.

`attack.jsonl` holds a header (attack, epsilons, smoothed, seed, ...) and one line an image with
the predicted class without attack and under attack at each epsilon; where a gradient of the attack
was not finite, `undefined` as well.
"""

from typing import Any, NamedTuple

import numpy as np

from robust_jax.errors import UserError
from robust_jax.workdir import records


class AttackLog(NamedTuple):
  """An attack log, one entry per image in the order of the file.

  Attributes:
    idx: [num_images] int64, the image's position in its split.
    label: [num_images] int64.
    clean: [num_images] int64, the predicted class without attack; -1 abstains.
    adversarial: [num_images, num_epsilons] int64, under attack; -1 abstains.
    undefined: [num_images, num_epsilons] bool, where a gradient of the attack was not finite, so
      that it may have missed what it would have found; False in logs from before that was noted.
    epsilons: [num_epsilons] float64, in pixel units of the attack's norm.
    header: what was attacked and how.
  """

  idx: np.ndarray
  label: np.ndarray
  clean: np.ndarray
  adversarial: np.ndarray
  undefined: np.ndarray
  epsilons: np.ndarray
  header: dict[str, Any]


def read(path) -> AttackLog:
  """Reads `attack.jsonl`. A last line that a crash left unfinished is dropped.

  Raises:
    UserError: no such file, or a malformed line, named as `file:line`.
  """
  header = {'epsilons': []}

  def parse(line, number):
    entry = records.parse_header(line) if number == 1 else records.parse_json(line, number)
    if number == 1:
      if not isinstance(entry.get('header'), dict) or 'epsilons' not in entry['header']:
        raise records.NoHeaderError(f'must be a header with epsilons, got {records.short(line)}')
      header.update(entry['header'])
      return ()
    row = [entry.get(name) for name in ('idx', 'label', 'clean')]
    classes = entry.get('adversarial')
    if not isinstance(classes, list) or len(classes) != len(header['epsilons']) or not all(
        type(value) is int for value in [*row, *classes]):
      raise ValueError('must have idx, label, clean and one adversarial class an epsilon, got '
                       + records.short(line))
    undefined = entry.get('undefined', [False] * len(classes))
    if not isinstance(undefined, list) or len(undefined) != len(classes) or not all(
        type(value) is bool for value in undefined):
      raise ValueError(f'undefined must be true or false for each epsilon, got {undefined}')
    return *row, classes, undefined

  rows = list(filter(None, records.read(path, parse)))
  idx, label, clean, adversarial, undefined = zip(*rows) if rows else ((),) * 5
  if len({*idx}) < len(idx):
    raise UserError(f'{path}: an idx occurs more than once')
  return AttackLog(
      *(np.array(column, np.int64) for column in (idx, label, clean)),
      *(np.array(values, dtype).reshape(len(rows), len(header['epsilons']))
        for values, dtype in ((adversarial, np.int64), (undefined, bool))),
      np.array(header['epsilons'], np.float64), header)


def clean_accuracy(attack: AttackLog):
  """The fraction of images that are correct without attack; NaN without images."""
  return float(np.mean(attack.clean == attack.label)) if len(attack.idx) else np.nan


def robust(attack: AttackLog):
  """Which images stay correct up to each epsilon.

  An image is robust at epsilon if it is correct without attack and under attack at every listed
  epsilon' <= epsilon: an adversarial example of a smaller ball lies in the larger one as well.

  Returns:
    [num_images, num_epsilons] bool, epsilons in the order of `attack.epsilons`.
  """
  label = attack.label[:, None]
  broken = (attack.adversarial != label) | (attack.clean[:, None] != label)
  within = attack.epsilons[:, None] <= attack.epsilons  # [smaller, larger]
  return ~(broken @ within)


def robust_accuracy(attack: AttackLog):
  """The fraction of images that stay correct up to each epsilon; see `robust`.

  Returns:
    [num_epsilons] in the order of `attack.epsilons`; NaN without images.
  """
  if not len(attack.idx):
    return np.full(attack.epsilons.shape, np.nan)
  return np.mean(robust(attack), axis=0)


def undefined_images(attack: AttackLog):
  """How many images were attacked with some gradient that was not finite, at any epsilon."""
  return int(np.sum(attack.undefined.any(axis=-1)))


def attack_curve(attack: AttackLog):
  """(epsilons, accuracies), ascending, from no attack at epsilon 0."""
  order = np.argsort(attack.epsilons, kind='stable')
  order = order[attack.epsilons[order] > 0]
  return (np.concatenate([[0.0], attack.epsilons[order]]),
          np.concatenate([[clean_accuracy(attack)], robust_accuracy(attack)[order]]))
