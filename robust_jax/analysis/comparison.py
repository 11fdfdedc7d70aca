"""Logs and figures side by side: on which images, what else differs, and how much figures differ.

Everything that compares uses this: the command line, the page of several runs, a sweep.
"""

import functools
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from robust_jax.analysis.intervals import mean_interval, paired_difference, welch_difference

# Settings of a certification log that say which images and network, not how an image is certified.
_WHICH = {'seed', 'dataset', 'split', 'stride', 'num_images', 'num_classes', 'batch_size',
          'checkpoint_step', 'classifier_sha256', 'training_noise'}
# Those that the certifier has worked out of others, of sigma for one.
_DERIVED = {'alpha_cap', 'alpha_anytime', 'cap_hits', 'noise_loss'}


def common_images(logs):
  """The indices, ascending, of the images that are in every log; none without logs."""
  return np.unique(functools.reduce(np.intersect1d, [log.idx for log in logs] or [[]])).astype(int)


def on_images(log, idx):
  """The log of the images `idx` alone, in this order.

  Args:
    log: a certification or attack log.
    idx: [num_images], each in the log.

  Returns:
    A log of the same kind.
  """
  order = np.argsort(log.idx, kind='stable')
  rows = order[np.searchsorted(log.idx, idx, sorter=order)]
  # These speak of the whole log, not of an image.
  whole = ('settings', 'environments', 'epsilons', 'header')
  return log._replace(**{name: getattr(log, name)[rows]
                         for name in log._fields
                         if name not in whole and getattr(log, name) is not None})


def other_label(logs) -> tuple[int, int, int] | None:
  """(number of a log, of another one, idx) of an image that they give different labels.

  Then they are of different datasets, or number the images of one dataset differently. None where
  all labels agree.
  """
  seen = {}
  for number, log in enumerate(logs):
    for idx, label in zip(log.idx.tolist(), log.label.tolist()):
      first, other = seen.setdefault(idx, (label, number))
      if first != label:
        return other, number, idx
  return None


def differing_settings(settings: Sequence[dict]) -> dict[str, dict[str, list[int]]]:
  """By what the settings of several certification logs make their certificates differ.

  A log that lacks a setting says nothing of it; but one with a certifier's name and without radii
  has certified any radius.

  Returns:
    {name of a setting: {value as JSON: numbers of the logs}}, of two values or more.
  """
  found = {}
  for name in dict.fromkeys(name for each in settings for name in each):
    values = {}
    for number, each in enumerate(settings):
      if name in each or (name == 'radii' and 'name' in each):
        values.setdefault(json.dumps(each.get(name, 'any')), []).append(number)
    if len(values) > 1 and name not in _WHICH | _DERIVED:
      found[name] = values
  return found


class Column(NamedTuple):
  """One figure of several groups of runs; a group has the runs of one config, or a single log.

  Attributes:
    title: of the column.
    values: [group][run], each the values of the images that the figure is the mean of, one value
      where it is not a mean over images, or None where it was not measured.
    scale: what the mean is multiplied with to be shown.
    decimals: that are shown.
    compared: whether the figures may be compared, the largest being the best.
  """

  title: str
  values: list[list[np.ndarray | None]]
  scale: float = 100.
  decimals: int = 1
  compared: bool = True

  def figures(self, group: int) -> list[float]:
    """The figures of the runs of a group that were measured."""
    return [self.scale * float(np.mean(values)) for values in self.values[group]
            if values is not None]

  def mean(self, group: int) -> tuple[float, float]:
    """The mean over the runs of a group, and the half-width of its interval."""
    return mean_interval(self.figures(group))

  def difference(self, group: int, first: int = 0) -> str:
    """Mean of a group minus that of the first one, and its interval, as text.

    The interval is over training runs, Welch's, as +1.2 ± 0.3, where both groups have several. With
    one there is no spread over runs, but one over images, the same for both: it is
    `paired_difference`, as +1.2 [+0.9, +1.5].
    """
    both = [[values for values in self.values[number] if values is not None]
            for number in (group, first)]
    images = [np.mean(runs, axis=0) if runs else [] for runs in both]
    if min(map(len, both)) == 1 and min(map(len, images)) > 1:
      difference, low, high = (
          f'{self.scale * value:+.{self.decimals}f}' for value in paired_difference(*images))
      return f'{difference} [{low}, {high}]'
    return self.text(*welch_difference(self.figures(group), self.figures(first)), '+')

  def text(self, value: float, half: float, sign='') -> str:
    """A figure or, with '+' as the sign, a difference, and its half-width if it is known."""
    text = f'{value:{sign}.{self.decimals}f}'
    return text if np.isnan(half) else f'{text} ± {half:.{self.decimals}f}'
