"""The three tables of the command line: logs, their envelope, their differences.

Every function gives a `table.Table` of texts; None is what is not known. With `separate`, an
interval has columns of its own, for programs; else it stands behind its figure.
"""

from collections.abc import Sequence

import numpy as np

from robust_jax.analysis.certified import (
    abstention_rate,
    acr_text,
    certified_accuracy,
    certified_images,
    mean_draws,
)
from robust_jax.analysis.comparison import Column, common_images, on_images
from robust_jax.analysis.found_logs import FoundLog, comparable
from robust_jax.analysis.intervals import accuracy_interval
from robust_jax.analysis.table import Table
from robust_jax.errors import UserError


def logs_table(found: Sequence[FoundLog], names: Sequence[str], radii, *, decimals=1,
               separate=False) -> Table:
  """One row a log: certified accuracy at each radius, ACR, abstention, draws, seconds.

  Accuracies and abstention are in per cent; draws and seconds are means over the images. The
  interval is that of `accuracy_interval`, 95%. The ACR of a grid of radii has a ≥ before it, but
  not where it is for programs.
  """
  titles = [title for radius in radii for title in (
      [f'r={radius:g}', f'r={radius:g} low', f'r={radius:g} high'] if separate
      else [f'r={radius:g}'])]
  rows = []
  for one, name in zip(found, names):
    log, num_images = one.log, len(one.log.idx)
    accuracy = certified_accuracy(log, radii)
    cells = []
    for parts in zip(accuracy, *accuracy_interval(accuracy, num_images)):
      value, low, high = (_text(100 * part, f'.{decimals}f') for part in parts)
      if separate:
        cells += [value, low, high] if value else [None] * 3
      else:
        cells.append(value and f'{value} ({low}–{high})')
    # Where the label was tested, wrong and abstained are one.
    abstains = None if log.settings.get('choose') == 'label' else 100 * abstention_rate(log)
    rows.append([
        name, _text(one.sigma, 'g'), str(num_images), *cells,
        acr_text(log, '' if separate else '≥ '), _text(abstains, f'.{decimals}f'),
        _text(mean_draws(one.votes), '.0f'),
        _text(np.mean(log.time) if num_images else None, '.3g')])
  return Table(['log', 'sigma', 'images', *titles, 'ACR', 'abstains', 'draws', 'seconds'], rows)


def envelope_table(found: Sequence[FoundLog], names: Sequence[str], radii, *, decimals=1,
                   separate=False) -> Table:
  """One row a radius: the best certified accuracy over the logs, in per cent, and whose it is.

  It carries no interval: that of the best of many would have to account for the choice.
  """
  del separate
  curves = np.array([certified_accuracy(one.log, radii) for one in found])
  rows = []
  for radius, column in zip(radii, curves.T):
    largest = np.fmax.reduce(column)
    if np.isnan(largest):
      rows.append([f'{radius:g}', None, None, None])
      continue
    best = np.flatnonzero(column == largest)
    alike = f' (and {len(best) - 1} more)' if len(best) > 1 else ''
    rows.append([f'{radius:g}', _text(100 * largest, f'.{decimals}f'),
                 str(len(found[best[0]].log.idx)),
                 f'{names[best[0]]}{alike}' if largest > 0 else None])
  return Table(['radius', 'certified', 'images', 'attained by'], rows)


def comparison_table(found: Sequence[FoundLog], names: Sequence[str], radii, *, decimals=1,
                     separate=False) -> Table:
  """Certified accuracy and ACR on the images that all logs have, and differences from the first.

  A difference is mean(log - first) over the images and its paired 95% interval
  (`paired_difference`); None where the certifiers of the logs did not decide the same
  (`found_logs.comparable`).

  Raises:
    UserError: no image is in all logs.
  """
  idx = common_images([one.log for one in found])
  if not len(idx):
    short = min(found, key=lambda one: len(one.log.idx))
    raise UserError(f'no image is in all {len(found)} logs ({short.path} has '
                    f'{len(short.log.idx)})')
  logs = [on_images(one.log, idx) for one in found]
  columns = [Column(f'r={radius:g}', [[certified_images(log, radius)] for log in logs],
                    decimals=decimals) for radius in radii]
  columns.append(Column('ACR', [[log.correct * log.radius] for log in logs], scale=1., decimals=3))
  rows = []
  for i, (one, log, name) in enumerate(zip(found, logs, names)):
    images = f'{len(idx)} of {len(one.log.idx)}'
    figures = [column.text(*column.mean(i)) if column.figures(i) else None for column in columns]
    figures[-1] = acr_text(log, '' if separate else '≥ ')
    rows.append([name, images, 'itself', *figures])
    if i:
      rows.append([name, images, 'minus the first', *(
          _difference(column, i, alike)
          for column, alike in zip(columns, comparable([found[0], one], radii)))])
  if separate:
    rows = [[*row[:3], *(part for figure in row[3:] for part in _parts(figure))] for row in rows]
  titles = [title for column in columns for title in (
      [column.title, f'{column.title} low', f'{column.title} high'] if separate
      else [column.title])]
  return Table(['log', 'images', 'figure', *titles], rows)


def _difference(column, i, alike):
  """The text of a column's difference from the first log; None where they do not compare."""
  if not (alike and column.figures(i) and column.figures(0)):
    return None
  return column.difference(i)


def _parts(figure):
  """(value, low, high) of a figure's text; None for what it does not have."""
  value, _, interval = (figure or '').rstrip(']').partition(' [')
  low, _, high = interval.partition(', ')
  return value or None, low or None, high or None


def _text(value, spec):
  """A number as text; None of what is None or NaN."""
  return None if value is None or np.isnan(value) else format(value, spec)
