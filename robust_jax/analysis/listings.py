"""The three tables of the command line: logs, their envelope, their differences.

Every function gives a `table.Table` of texts; None is what is not known. With `separate`, an
interval has columns of its own, for programs; else it stands behind its figure.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from robust_jax.analysis.certified import (
    abstention_rate,
    accuracy_interval,
    average_certified_radius,
    certified_accuracy,
    certified_images,
    decided_radii,
)
from robust_jax.analysis.images import common_images, on_images
from robust_jax.analysis.means import paired_difference
from robust_jax.analysis.published_logs import Source, comparable
from robust_jax.analysis.table import Table
from robust_jax.errors import UserError


def default_radii(sources: Sequence[Source]) -> list[float]:
  """The grid that all logs have decided; without one, 0, 0.25, 0.5, ... up to the largest radius.

  Nine at most, for which the distance grows to 0.5, 1, 2.5, ...; it is smaller than 0.25 where no
  radius of 0.5 is certified.
  """
  grids = {tuple(source.log.settings.get('radii') or ()) for source in sources}
  if len(grids) == 1 and len(min(grids)) in range(1, 10):
    return list(min(grids))
  certified = [source.log.radius[source.log.correct] for source in sources]
  largest = max(np.concatenate([[0.], *certified]))
  steps = (factor * 10.**power for power in itertools.count(-6) for factor in (1, 2.5, 5))
  step = next(step for step in steps
              if largest <= 8 * step and (step >= 0.25 or largest < 0.5))
  return [round(i * step, 9) for i in range(int(largest / step + 1e-9) + 1)]


def logs_table(sources: Sequence[Source], names: Sequence[str], radii, *, decimals=1,
               separate=False) -> Table:
  """One row a log: certified accuracy at each radius, ACR, abstention, draws, seconds.

  Accuracies and abstention are in per cent; draws and seconds are means over the images. The
  interval is that of `accuracy_interval`, 95%. The ACR of a grid of radii has a ≥ before it, but
  not where it is for programs.
  """
  titles = [f'r={radius:g}' for radius in radii]
  if separate:
    titles = [text for title in titles for text in (title, f'{title} low', f'{title} high')]
  rows = []
  for source, name in zip(sources, names):
    log, num_images = source.log, len(source.log.idx)
    accuracy = certified_accuracy(log, radii)
    cells = []
    for value, low, high in zip(accuracy, *accuracy_interval(accuracy, num_images)):
      value, low, high = (_percent(each, decimals) for each in (value, low, high))
      if value is None:
        cells += [None] * (3 if separate else 1)
      else:
        cells += [value, low, high] if separate else [f'{value} ({low}–{high})']
    rows.append([
        name, _text(source.sigma, 'g'), str(num_images), *cells,
        acr_text(log, at_least='' if separate else '≥ '),
        # Where the label was tested, wrong and abstained are one.
        None if log.settings.get('choose') == 'label' else _percent(abstention_rate(log), decimals),
        _text(mean_draws(source.votes), '.0f'),
        _text(np.mean(log.time) if num_images else None, '.3g')])
  return Table(['log', 'sigma', 'images', *titles, 'ACR', 'abstains', 'draws', 'seconds'], rows)


def envelope_table(sources: Sequence[Source], names: Sequence[str], radii, *,
                   decimals=1) -> Table:
  """One row a radius: the best certified accuracy over the logs, in per cent, and whose it is.

  It carries no interval: that of the best of many would have to account for the choice.
  """
  curves = np.array([certified_accuracy(source.log, radii) for source in sources])
  rows = []
  for radius, column in zip(radii, curves.T):
    largest = np.fmax.reduce(column)
    if np.isnan(largest):
      rows.append([f'{radius:g}', None, None, None])
      continue
    best = np.flatnonzero(column == largest)
    alike = f' (and {len(best) - 1} more)' if len(best) > 1 else ''
    rows.append([f'{radius:g}', _percent(largest, decimals),
                 str(len(sources[best[0]].log.idx)),
                 f'{names[best[0]]}{alike}' if largest > 0 else None])
  return Table(['radius', 'certified', 'images', 'attained by'], rows)


def comparison_table(sources: Sequence[Source], names: Sequence[str], radii, *, decimals=1,
                     separate=False) -> Table:
  """Certified accuracy and ACR on the images that all logs have, and differences from the first.

  A difference is mean(log - first) over the images, ± the half-width of its paired 95% interval
  (`paired_difference`); without ± where all images agree in it, so that they show no spread; None
  where the certifiers of the logs did not decide the same (`sources.comparable`).

  Raises:
    UserError: no image is in all logs.
  """
  idx = common_images([source.log for source in sources])
  if not len(idx):
    short = min(sources, key=lambda source: len(source.log.idx))
    raise UserError(f'no image is in all {len(sources)} logs ({short.path} has '
                    f'{len(short.log.idx)}); logs that share images are allowed')
  cut = [on_images(source.log, idx) for source in sources]
  # [num_logs, num_radii + 1, num_images], the last column for ACR.
  values = np.stack([[*(_percents(certified_images(log, radius), len(idx)) for radius in radii),
                      log.correct * log.radius] for log in cut])
  digits = [decimals] * len(radii) + [3]
  titles = [*(f'r={radius:g}' for radius in radii), 'ACR']
  if separate:
    titles = [text for title in titles for text in (title, f'{title} ±')]
  rows = []
  for i, name in enumerate(names):
    figures = [_text(value, f'.{digit}f') for value, digit in zip(values[i].mean(axis=1), digits)]
    figures[-1] = acr_text(cut[i], at_least='' if separate else '≥ ')
    images = f'{len(idx)} of {len(sources[i].log.idx)}'
    rows.append([name, images, 'itself', *_with_interval(figures, [None] * len(digits), separate)])
    if i:
      pairs = [paired_difference(first, second) for first, second in zip(values[i], values[0])]
      figures = [_text(difference, f'+.{digit}f') for (difference, _), digit in zip(pairs, digits)]
      halves = [f'{half:.{digit}f}' if half > 0 else None
                for (_, half), digit in zip(pairs, digits)]
      alike = comparable([sources[0], sources[i]], radii)
      figures = [figure if same else None for figure, same in zip(figures, alike)]
      halves = [half if same else None for half, same in zip(halves, alike)]
      rows.append([name, images, 'minus the first', *_with_interval(figures, halves, separate)])
  return Table(['log', 'images', 'figure', *titles], rows)


def acr_text(log, at_least='≥ '):
  """The average certified radius; of a grid of radii, which round it down, after `at_least`."""
  text = _text(average_certified_radius(log), '.3f')
  return text if text is None or decided_radii(log) is None else f'{at_least}{text}'


def mean_draws(votes):
  """Draws an image, those that chose its class included; None without votes."""
  if votes is None:
    return None
  return np.mean(votes.counts0.sum(axis=-1) + votes.counts.sum(axis=-1))


def _with_interval(figures, halves, separate):
  if separate:
    return [cell for pair in zip(figures, halves) for cell in pair]
  return [f'{figure} ± {half}' if half else figure for figure, half in zip(figures, halves)]


def _percents(images, num_images):
  return np.full(num_images, np.nan) if images is None else 100. * images


def _percent(fraction, decimals):
  return _text(100 * fraction, f'.{decimals}f')


def _text(value, spec):
  """A number as text; None of what is None or NaN."""
  return None if value is None or np.isnan(value) else format(value, spec)
