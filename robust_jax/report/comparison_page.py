"""The page of several runs: their tables, and their curves in the same charts."""

import os
from pathlib import Path

import numpy as np

from robust_jax import analysis
from robust_jax.analysis import Table
from robust_jax.report import charts, pages, run
from robust_jax.report.charts import Chart, Line
from robust_jax.report.comparison import Panel, on_each, present, tables, title

# Points of all lines of a chart together, so that a page of many runs stays small.
_MAX_POINTS = 12_000
# With more configs than this, one legend stands above all charts, and the runs are folded away.
_MANY = 6


def page(panels, output: Path, files) -> str:
  """The HTML of the page.

  Args:
    panels: from `compare`.
    output: path of the page; its tables and figures lie beside it, and runs are linked from there.
    files: [panel] {name of a table or figure: name of its files without an ending}.
  """
  facts = []
  for panel in panels:
    of = f' of {panel.dataset}' if len(panels) > 1 else ''
    attacked = [row for logs in panel.attacks.values() for row in logs]
    for logs, what in ((panel.certified, 'certified'), (attacked, 'attacked')):
      sizes = {len(log.idx) for log in present(logs)}
      facts += [f'{size:,} images{of} {what}' for size in sizes if len(sizes) == 1]
  every = [(group.label, each) for panel in panels for group in panel.groups
           for each in group.runs]
  rows = [[str(each.path), label, pages.text(each.config.get('seed', '')),
           ', '.join(f'{name} {stage.get("status")}' for name, stage in each.stages.items()),
           run.device_text(each) if 'device' in each.record else None,
           each.record.get('versions', {}).get('robust_jax')] for label, each in every]
  return pages.render(
      'comparison.html', title=f'Comparison of {title(panels)}', facts=facts, panels=[
          {'panel': panel, 'tables': tables(panel), 'files': names,
           'styles': [charts.style(i) for i in range(len(panel.groups))],
           'titles': [column.title for column in panel.columns],
           'robustness': robustness_charts(panel), 'training': training_charts(panel)}
          for panel, names in zip(panels, files)],
      many=_MANY, plain_attack=not any(
          log.header.get('smoothed') for panel in panels for logs in panel.attacks.values()
          for log in present(logs)), certified=any(present(panel.certified) for panel in panels),
      runs=Table(['workdir', 'config', 'seed', 'stages', 'device', 'version'], rows),
      links={str(each.path): os.path.relpath(each.path / 'report.html', output.parent)
             for _, each in every if (each.path / 'report.html').exists()},
      commands=list(dict.fromkeys(each.record['command'] for _, each in every
                                  if 'command' in each.record)))


def robustness_charts(panel: Panel) -> list[Chart]:
  """The certified curves, against radius and p_A, and those under each attack."""
  in_legend, found = len(panel.groups) <= _MANY, []
  logs = present(panel.certified)
  if logs:
    curves = iter(charts.certified_curves(logs, _points(len(logs))))
    found.append(run.accuracy_chart(
        'certified', 'Certified accuracy', 'ℓ₂ radius of the perturbation',
        _lines(panel, on_each(lambda _: next(curves), panel.certified), steps=True),
        in_legend=in_legend, limits=charts.draw_limits(logs)))
    sigmas = on_each(lambda log: log.settings.get('sigma'), panel.certified)
    if all(present(sigmas)) and len(present(sigmas)) == len(logs):
      curves = iter(charts.probability_curves(logs, present(sigmas), _points(len(logs))))
      found.append(charts.probability_chart(
          _lines(panel, on_each(lambda _: next(curves), panel.certified), steps=True),
          size=run.LARGE, in_legend=in_legend))
  for number, (name, attacked) in enumerate(panel.attacks.items()):
    scale, label = run.epsilon_axis(present(attacked))
    curves = on_each(lambda log, scale=scale: (scale * analysis.attack_curve(log)[0],
                                            analysis.attack_curve(log)[1]), attacked)
    found.append(run.accuracy_chart(
        f'attack{number or ""}', f'Accuracy under {name}', label,
        _lines(panel, curves, marks=True), in_legend=in_legend))
  return found


def training_charts(panel: Panel) -> list[Chart]:
  """Losses and accuracies over training."""
  rows = [row for group in panel.groups for each in group.runs
          for split in ('train', 'test') for row in each.metrics[split]]
  if not rows:
    return []
  x_name = run.training_axis(rows)
  curves = lambda split, name: [[run.training_curve(each.metrics[split], name, x_name)
                                 for each in group.runs] for group in panel.groups]
  return [Chart(f'{split}-{name}', f'{split.capitalize()} {name}', x_name,
                _lines(panel, curves(split, name)), percent=name == 'accuracy', size=run.SMALL,
                in_legend=len(panel.groups) <= _MANY)
          for split in ('train', 'test') for name in ('loss', 'accuracy')]


def _lines(panel, curves, *, steps=False, marks=False):
  """For each group the mean of its runs' curves, before it those of the single runs.

  Args:
    panel: the runs.
    curves: [group][run] (x, y) or None.
    steps, marks: of the lines; see `charts.Line`.
  """
  most = _points(sum(map(len, curves)))
  # A step function is given in few enough points, and means would put it above itself.
  thinned = lambda x, y: (x, y) if steps else charts.average(x, y, most)
  behind, before = [], []
  for i, (group, row) in enumerate(zip(panel.groups, curves)):
    known = [curve for curve in row if curve is not None and len(curve[0])]
    if not known:
      continue
    style = charts.style(i)
    name = group.label + (f' ({len(known)} runs)' if len(known) > 1 else '')
    shared = _mean_curve(known)
    if len(shared[0]):
      before.append(Line(name, style, *thinned(*shared), steps=steps, marks=marks))
      name = ''
    if len(known) > 1:
      thin = [Line('', style, *thinned(*curve), steps=steps, thin=True) for curve in known]
      # Runs that were logged at other steps have no mean, but a name.
      behind += [thin[0]._replace(name=name), *thin[1:]]
  return behind + before


def _mean_curve(curves):
  """(x, mean of y) at the x that all curves have: an unfinished run ends the mean of its group."""
  x = curves[0][0]
  for other, _ in curves[1:]:
    x = np.intersect1d(x, other)
  return x, np.mean([y[np.isin(its, x)] for its, y in curves], axis=0)


def _points(num_lines):
  return max(min(_MAX_POINTS // num_lines, charts.MAX_POINTS), 60)
