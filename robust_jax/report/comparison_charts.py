"""The charts of a comparison: the curves of all runs on one dataset over each other."""

import numpy as np

from robust_jax import analysis
from robust_jax.report import plots, results

# Points of all lines of a chart together, so that a page of many runs stays small.
_MAX_POINTS = 12_000


def robustness(panel, styles, looks):
  """HTML of the certified curves, and of those under each attack; '' without any.

  Args:
    panel: a `comparison.Panel`.
    styles: of the lines of each group.
    looks: dict of further arguments of `plots.chart`.
  """
  return _certified_chart(panel, styles, looks) + _attack_charts(panel, styles, looks)


def training(panel, styles, looks):
  """Losses and accuracies over training; see `robustness`."""
  rows = [row for group in panel.groups for run in group.runs
          for split in ('train', 'test') for row in run.metrics[split]]
  if not rows:
    return ''
  x_name = 'epoch' if all('epoch' in row for row in rows) else 'step'
  limits = 0, max(row[x_name] for row in rows)
  runs = [group.runs for group in panel.groups]
  charts = []
  for split, name in (('train', 'loss'), ('train', 'accuracy'), ('test', 'loss'),
                      ('test', 'accuracy')):

    def curve(run, split=split, name=name):
      found = [row for row in run.metrics[split] if row.get(name) is not None]
      return [row[x_name] for row in found], [row[name] for row in found]

    charts.append(plots.chart(
        _lines(panel, styles, runs, curve), title=f'{split.capitalize()} {name}', x_label=x_name,
        x_limits=limits, percent=name == 'accuracy', **looks))
  return ''.join(charts)


def _certified_chart(panel, styles, looks):
  logs = [log for row in panel.certified for log in row if log is not None]
  if not logs:
    return ''
  grids = [grid for grid in map(analysis.decided_radii, logs) if grid is not None]
  radii = np.unique(np.concatenate([[0.], *grids, *(log.radius[log.correct] for log in logs)]))
  most = _points(len(logs))
  if len(radii) > most:
    radii = np.unique(np.concatenate([np.linspace(0, radii[-1], most), *grids]))
  end = 1.04 * radii[-1] or 1.
  radii = np.append(radii, radii[-1] + 1e-6)  # Where the largest radius is seen to end.

  def curve(log):
    accuracies = analysis.certified_accuracy(log, radii)
    known = ~np.isnan(accuracies)
    return radii[known], accuracies[known]

  lines = _lines(panel, styles, panel.certified, curve, steps=True)
  return plots.chart(lines, title='Certified accuracy', x_label='ℓ₂ radius of the perturbation',
                     x_limits=(0, end), y_limits=(0, 1), percent=True,
                     width=520, height=340, **looks)


def _attack_charts(panel, styles, looks):
  charts = []
  for name, logs in panel.attacks.items():
    present = [log for row in logs for log in row if log is not None]
    scales = {results.epsilon_axis(log) for log in present}
    scale, label = scales.pop() if len(scales) == 1 else (1., f'{results.norm(present[0])} ε')

    def curve(log, scale=scale):
      epsilons, accuracies = results.attack_curve(log)
      return epsilons * scale, accuracies

    lines = _lines(panel, styles, logs, curve, marks=True)
    end = 1.04 * scale * max(log.epsilons.max(initial=0.) for log in present) or 1.
    charts.append(plots.chart(lines, title=f'Accuracy under {name}', x_label=label,
                              x_limits=(0, end), y_limits=(0, 1), percent=True, width=520,
                              height=340, **looks))
  return ''.join(charts)


def _lines(panel, styles, measured, curve, *, steps=False, marks=False):
  """For each group the mean of its runs' curves, before it those of the single runs.

  Args:
    panel: the runs.
    styles: of each group.
    measured: [group][run] what `curve` takes, or None.
    curve: gives (x, y) of one run.
    steps, marks: of the lines; see `plots.Series`.
  """
  most = _points(sum(map(len, measured)))
  # A step function is given in few enough points, and means would put it above itself.
  thinned = lambda x, y: (x, y) if steps else plots.average(x, y, most)
  behind, before = [], []
  for group, style, row in zip(panel.groups, styles, measured):
    curves = [curve(each) for each in row if each is not None]
    curves = [(np.asarray(x), np.asarray(y)) for x, y in curves if len(x)]
    if not curves:
      continue
    name = group.label + (f' ({len(curves)} runs)' if len(curves) > 1 else '')
    shared = _mean_curve(curves)
    if len(shared[0]):
      before.append(plots.Series(name, style, *thinned(*shared), steps=steps, marks=marks))
      name = ''
    if len(curves) > 1:
      lines = [plots.Series('', f'{style} thin', *thinned(*curve), steps=steps)
               for curve in curves]
      # Runs that were logged at other steps have no mean, but a name.
      behind += [lines[0]._replace(name=name), *lines[1:]]
  return behind + before


def _mean_curve(curves):
  """(x, mean of y) at the x that all curves have: an unfinished run ends the mean of its group."""
  x = curves[0][0]
  for other, _ in curves[1:]:
    x = np.intersect1d(x, other)
  return x, np.mean([y[np.isin(its, x)] for its, y in curves], axis=0)


def _points(num_lines):
  return max(min(_MAX_POINTS // num_lines, plots.MAX_POINTS), 60)
