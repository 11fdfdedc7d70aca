"""Logs of several runs on the images that they share: only then do their figures compare.

The functions take certification logs and attack logs alike.
"""

import functools

import numpy as np


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
                         for name in log._fields if name not in whole})
