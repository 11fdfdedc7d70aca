"""The tables of a comparison: figures, differences, runs and fields, as text."""

import numpy as np

from robust_jax import analysis
from robust_jax.analysis import Best, Table
from robust_jax.report import groups
from robust_jax.report.comparison import Panel


def tables(panel: Panel) -> dict[str, tuple[str, Table]]:
  """{name: (caption, table)}: figures, and where they say more differences, runs, fields."""
  result = {'figures': (_caption(panel), _figures(panel))}
  if len(panel.groups) > 1 and any(column.compared for column in panel.columns):
    result['differences'] = (f'Differences from {panel.groups[0].label}, ± 95%',
                             _differences(panel))
  if any(len(group.runs) > 1 for group in panel.groups):
    result['runs'] = ('Every run', _runs(panel))
  # Most of what differs are often the own fields of one method: these come last.
  fields = groups.differing([group.config for group in panel.groups])
  common = [field for field in fields if all(field in group.config for group in panel.groups)]
  own = [field for field in fields if field not in common]
  result |= {name: (caption, _fields(panel, which)) for name, caption, which in (
      ('fields', 'Fields that differ', common), ('own_fields', 'Fields that some have', own))
      if which}
  return result


def _caption(panel):
  several = any(len(group.runs) > 1 for group in panel.groups)
  return ('Mean ± 95% interval of the mean over n training runs, accuracies in %' if several
          else 'One training run each, accuracies in %')


def _figures(panel):
  rows = []
  for i, group in enumerate(panel.groups):
    cells = [_cell(column, i, len(group.runs)) for column in panel.columns]
    rows.append([group.label, str(len(group.runs)), *cells])
  return Table(['config', 'n', *(column.title for column in panel.columns)], rows)


def _cell(column, i, num_runs):
  figures = column.figures(i)
  if not figures:
    return None
  mean, half = analysis.mean_interval(figures)
  text = f'{mean:.{column.decimals}f}'
  if not np.isnan(half):
    text += f' ± {half:.{column.decimals}f}'
  if len(figures) < num_runs:
    text += f' (n={len(figures)})'
  means = [round(float(np.mean(others)), column.decimals)
           for others in map(column.figures, range(len(column.values))) if others]
  best = column.compared and min(means) < max(means) == round(mean, column.decimals)
  return Best(text) if best else text


def _differences(panel):
  """Every group minus the first, where the figures may be compared."""
  columns = [column for column in panel.columns if column.compared]
  rows = []
  for i, group in enumerate(panel.groups[1:], 1):
    over_runs = min(len(group.runs), len(panel.groups[0].runs)) > 1
    rows.append([group.label, 'training runs' if over_runs else 'images',
                 *(_difference(column, i, over_runs) for column in columns)])
  return Table(['config', 'interval over', *(column.title for column in columns)], rows)


def _difference(column, i, over_runs):
  figures = [column.figures(i), column.figures(0)]
  if not all(figures):
    return None
  # With one training run there is no spread over runs, but one over images, the same for both.
  images = [_mean_over_runs(column.values[k]) for k in (i, 0)]
  if over_runs or len(images[0]) == 1:
    difference, half = analysis.welch_difference(*figures)
  else:
    difference, half = analysis.paired_difference(*images)
    difference, half = column.scale * difference, column.scale * half
  text = f'{difference:+.{column.decimals}f}'
  return text if np.isnan(half) else f'{text} ± {half:.{column.decimals}f}'


def _mean_over_runs(values):
  return np.mean([each for each in values if each is not None], axis=0)


def _runs(panel):
  rows = []
  every = [run for group in panel.groups for run in group.runs]
  names = dict(zip((run.path for run in every), groups.folder_names([run.path for run in every])))
  for i, group in enumerate(panel.groups):
    for j, run in enumerate(group.runs):
      values = [column.values[i][j] for column in panel.columns]
      rows.append([names[run.path], group.label, run.config.get('seed'), *(
          None if value is None else
          f'{column.scale * float(np.mean(value)):.{column.decimals}f}'
          for value, column in zip(values, panel.columns))])
  return Table(['run', 'config', 'seed', *(column.title for column in panel.columns)], rows)


def _fields(panel, fields):
  """Fields of the groups' configs, the shorter of the two ways across."""
  cells = [[groups.value_text(field, group.config[field]) if field in group.config else None
            for group in panel.groups] for field in fields]
  labels = [group.label for group in panel.groups]
  if len(fields) < len(labels):
    return Table(['config', *fields], [list(row) for row in zip(labels, *cells)])
  return Table(['field', *labels], [[field, *row] for field, row in zip(fields, cells)])
