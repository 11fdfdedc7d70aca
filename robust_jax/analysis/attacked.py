"""What an attack log says: the accuracy that is left under attack.

`attack.jsonl` holds a header (attack, epsilons, smoothed, seed, ...) and one line an image with
the predicted class without attack and under attack at each epsilon; where a gradient of the attack
was not finite, `undefined` as well. Of a smoothed classifier there are the votes too. It may
abstain, and then there are two readings: as a classifier that has to answer it is wrong; but an
adversarial example, which bounds its robustness from above, is only what is one with confidence.
"""

from typing import Any, NamedTuple

import numpy as np

from robust_jax import certification
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
    votes: None, or of a smoothed classifier [num_images, 1 + num_epsilons, 2] int64, of the draws
      that judged it those of the label and those of the most frequent other class, without attack
      and at each epsilon; None in logs from before that was noted.
  """

  idx: np.ndarray
  label: np.ndarray
  clean: np.ndarray
  adversarial: np.ndarray
  undefined: np.ndarray
  epsilons: np.ndarray
  header: dict[str, Any]
  votes: np.ndarray | None = None


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
    return *row, classes, undefined, _votes(entry, header)

  rows = list(filter(None, records.read(path, parse)))
  idx, label, clean, adversarial, undefined, votes = zip(*rows) if rows else ((),) * 6
  if len({*idx}) < len(idx):
    raise UserError(f'{path}: an idx occurs more than once')
  return AttackLog(
      *(np.array(column, np.int64) for column in (idx, label, clean)),
      *(np.array(values, dtype).reshape(len(rows), len(header['epsilons']))
        for values, dtype in ((adversarial, np.int64), (undefined, bool))),
      np.array(header['epsilons'], np.float64), header,
      None if None in votes or not rows else np.array(votes, np.int64))


def _votes(entry, header):
  """The votes of a line, None where it has none."""
  votes = entry.get('votes')
  if votes is None or not {'n', 'alpha', 'num_classes'} <= header.keys():
    return None
  if not (isinstance(votes, list) and len(votes) == 1 + len(header['epsilons']) and all(
      isinstance(pair, list) and len(pair) == 2 and sum(pair) <= header['n']
      and all(type(value) is int and value >= 0 for value in pair) for pair in votes)):
    raise ValueError(f'votes must be two numbers of the {header["n"]} draws without attack and for '
                     f'each epsilon, got {records.short(str(votes))}')
  return votes


def verdicts(attack: AttackLog):
  """'adversarial', 'robust' or 'undecided': [num_images, 1 + num_epsilons] str, as of `judge`.

  Without attack and at each epsilon, each by itself, with error probability alpha. Without votes
  they follow from the classes: another class than the label is adversarial, -1 undecided.

  Reference: `certification.judge`.
  """
  if attack.votes is None:
    classes = np.column_stack([attack.clean, attack.adversarial])
    return np.select([classes == attack.label[:, None], classes >= 0],
                     ['robust', 'adversarial'], 'undecided')
  return certification.verdicts(
      attack.votes, attack.header['n'], alpha=attack.header['alpha'],
      num_classes=attack.header['num_classes'])


def attack_at_once(attack: AttackLog) -> AttackLog:
  """The log with alpha / (images (1 + epsilons)): its `verdicts` then hold all at once.

  By the union bound the probability that any of them is false is at most the log's alpha. Of the
  classes, which were judged at alpha, nothing changes.

  Raises:
    UserError: a log without votes.
  """
  if attack.votes is None:
    raise UserError('verdicts that hold all at once need the votes of an attack on a smoothed '
                    'classifier, which this log does not have')
  shared = attack.header['alpha'] / max(attack.votes[..., 0].size, 1)
  return attack._replace(header={**attack.header, 'alpha': shared})


def clean_accuracy(attack: AttackLog, *, confirmed=False):
  """The fraction of images that are correct without attack; NaN without images.

  confirmed: as of `robust`.
  """
  return float(np.mean(~_broken(attack, confirmed)[:, 0])) if len(attack.idx) else np.nan


def robust(attack: AttackLog, *, confirmed=False):
  """Which images stay correct up to each epsilon.

  An image is robust at epsilon if it is correct without attack and under attack at every listed
  epsilon' <= epsilon: an adversarial example of a smaller ball lies in the larger one as well.

  Args:
    attack: the log.
    confirmed: False: an image is correct where the classifier gives it its label, so that an
      abstention of a smoothed classifier is wrong. True: where it is no confirmed adversarial
      example (`verdicts`), so that what is undecided counts as correct: the reading that is an
      upper bound of robust accuracy.

  Returns:
    [num_images, num_epsilons] bool, epsilons in the order of `attack.epsilons`.
  """
  broken = _broken(attack, confirmed)
  broken = broken[:, 1:] | broken[:, :1]
  within = attack.epsilons[:, None] <= attack.epsilons  # [smaller, larger]
  return ~(broken @ within)


def _broken(attack, confirmed):
  """[num_images, 1 + num_epsilons] bool, without attack and at each epsilon by itself."""
  if confirmed:
    return verdicts(attack) == 'adversarial'
  return np.column_stack([attack.clean, attack.adversarial]) != attack.label[:, None]


def robust_accuracy(attack: AttackLog, *, confirmed=False):
  """The fraction of images that stay correct up to each epsilon; see `robust`.

  Returns:
    [num_epsilons] in the order of `attack.epsilons`; NaN without images.
  """
  if not len(attack.idx):
    return np.full(attack.epsilons.shape, np.nan)
  return np.mean(robust(attack, confirmed=confirmed), axis=0)


def undefined_images(attack: AttackLog):
  """How many images were attacked with some gradient that was not finite, at any epsilon."""
  return int(np.sum(attack.undefined.any(axis=-1)))


def attack_curve(attack: AttackLog, *, confirmed=False):
  """(epsilons, accuracies), ascending, from no attack at epsilon 0; `confirmed` as of `robust`."""
  order = np.argsort(attack.epsilons, kind='stable')
  order = order[attack.epsilons[order] > 0]
  accuracies = robust_accuracy(attack, confirmed=confirmed)[order]
  return (np.concatenate([[0.0], attack.epsilons[order]]),
          np.concatenate([[clean_accuracy(attack, confirmed=confirmed)], accuracies]))
