"""The table of training methods: many configs, several seeds, judged alike (see docs/methods.md).

Columns, all of the same test images:

- clean, PGD: the network itself, without noise; an image counts at a radius if no attack up to it
  changes the class;
- certified at 0, sigma and 2 sigma, ACR: its smoothed version, with the same noise for all;
- s / epoch: steps of an epoch times batch size over the median images a second, so that compiling
  does not count.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from robust_jax import analysis, report, workdir
from robust_jax.analysis import curves
from robust_jax.certification import bounds
from robust_jax.errors import UserError
from robust_jax.report import comparison, comparison_page, comparison_tables, markup, results
from robust_jax.report.comparison import Column

_BEGIN, _END = '<!-- measured -->\n', '<!-- end -->'


class MethodsTable(NamedTuple):
  """What was written, and for the documentation.

  Attributes:
    panel: the `comparison.Panel` of all rows.
    page: path of the page.
    summary: the table for a terminal.
  """

  panel: comparison.Panel
  page: Path
  summary: str


def compare(folder, rows, failed=()):
  """Writes table.html, table.csv|.md|.tex, table_runs.* and table.png.

  Args:
    folder: where to.
    rows: {name: workdirs of its seeds}.
    failed: {workdir: message} of those that are not finished.

  Returns:
    MethodsTable.

  Raises:
    UserError: nothing is measured, or not on one dataset.
  """
  page, failed = Path(folder) / 'table.html', dict(failed)
  name_of = {place: name for name, places in rows.items() for place in places}
  runs = [report.load(place) for place in name_of if place.is_dir()]
  runs = [run for run in runs if run.path not in failed or any(run.metrics.values())]
  panels = comparison.compare(sorted(runs, key=lambda run: _order(run, name_of[run.path])))
  if len(panels) > 1:
    raise UserError(f'{folder}: its runs are on {", ".join(panel.dataset for panel in panels)}; '
                    'one dataset is allowed')
  panel = panels[0]
  panel = panel._replace(
      groups=[group._replace(label=name_of[group.runs[0].path]) for group in panel.groups],
      columns=_columns(panel), notes=[
          *_notes(panel), *panel.notes,
          *(f'{name_of[place]}, {place} failed: {message}' for place, message in failed.items())])
  tables = comparison_tables.tables(panel)
  for name, stem in (('figures', 'table'), ('runs', 'table_runs')):
    if name in tables:
      for end, write in markup.WRITERS.items():
        workdir.write_bytes(page.parent / f'{stem}.{end}', write(tables[name][1]).encode())
  curves.write(page.with_suffix('.png'), *_drawing(panel))
  workdir.write_bytes(page, comparison_page.render([panel], page).encode())
  caption, figures = tables['figures']
  notes = ''.join(f'\nnote: {note}\n' for note in panel.notes)
  return MethodsTable(panel, page, f'{caption}\n\n{analysis.to_text(figures)}{notes}')


def write_docs(table, page):
  """Puts the table between the markers of a Markdown page, and as .csv and .png beside it.

  Raises:
    UserError: the page has no markers.
  """
  text = page.read_text(encoding='utf-8')
  if text.count(_BEGIN) != 1 or _END not in text.partition(_BEGIN)[2]:
    raise UserError(f'{page}: the lines {_BEGIN.strip()} and {_END} are to be there once')
  before, rest = text.split(_BEGIN)
  panel = table.panel
  caption, figures = comparison_tables.tables(panel)['figures']
  runs = [run for group in panel.groups for run in group.runs if run.attack is not None]
  run, versions = runs[0], runs[0].record['versions']
  words = '; '.join([
      f'{run.config["train"]["num_epochs"]:g} epochs', f'{len(run.attack.idx)} test images',
      results.device_text(run), run.record['platform'], f'robust_jax {versions["robust_jax"]}',
      f'jax {versions["jax"]}', max(run.record['started'] for run in runs)[:10]])
  notes = ''.join(f'\n{note}\n' for note in panel.notes)
  measured = f'{caption}. {words}.\n\n{analysis.to_markdown(figures)}{notes}'
  page.with_suffix('.csv').write_bytes(table.page.with_suffix('.csv').read_bytes())
  with Image.open(table.page.with_suffix('.png')) as drawing:
    drawing.quantize(64).save(page.with_suffix('.png'), optimize=True)  # A third of the size.
  workdir.write_bytes(page, f'{before}{_BEGIN}{measured}{_END}{rest.partition(_END)[2]}'.encode())


def seconds_an_epoch(run):
  """Of a run's metrics, the compiling step left out; None where no speed is known."""
  rows = [row for row in run.metrics['train'] if row.get('images_per_second')]
  if not rows:
    return None
  steps = rows[-1]['step'] / rows[-1]['epoch']
  speed = np.median([row['images_per_second'] for row in rows])
  return steps * run.config['train']['batch_size'] / speed


def _order(run, name):
  """Rows trained without noise first, and of these the one without any defence."""
  config = run.config
  return config.get('sigma', 0.) > 0, config.get('method', {}).get('name') != 'standard', name


def _columns(panel):
  of_runs = lambda function: [[function(run) for run in group.runs] for group in panel.groups]
  columns = []
  for name, logs in panel.attacks.items():
    of_logs = lambda function, logs=logs: [
        [None if log is None else function(log) for log in row] for row in logs]
    if not columns:
      columns.append(Column('clean', of_logs(lambda log: log.clean == log.label)))
    epsilons = next(log.epsilons for row in logs for log in row if log is not None)
    columns += [Column(f'{name} {epsilon:g}', of_logs(lambda log, i=i: analysis.robust(log)[:, i]))
                for i, epsilon in enumerate(epsilons)]
  certified = lambda function: [
      [None if log is None else function(log) for log in row] for row in panel.certified]
  columns += [Column(f'certified {radius:g}',
                     certified(lambda log, radius=radius: analysis.certified_images(log, radius)))
              for radius in _radii(panel)]
  columns.append(Column('ACR', certified(lambda log: log.correct * log.radius), scale=1.,
                        decimals=3))
  seconds = lambda run: None if (value := seconds_an_epoch(run)) is None else np.array([value])
  columns.append(Column('s / epoch', of_runs(seconds), scale=1., decimals=2, compared=False))
  return [column for column in columns if any(map(column.figures, range(len(panel.groups))))]


def _settings(panel):
  """The settings of the certificates, which all runs share; {} without any."""
  return next((log.settings for row in panel.certified for log in row if log is not None), {})


def _radii(panel):
  sigma = _settings(panel).get('sigma')
  return [0., sigma, 2 * sigma] if sigma else []


def _notes(panel):
  settings = _settings(panel)
  plain = sum(not group.config.get('sigma') for group in panel.groups)
  notes = []
  if plain:
    notes.append(f'The first {plain} rows are trained without noise.' if plain > 1 else
                 'The first row is trained without noise.')
  if settings:
    n, alpha, sigma = (settings[name] for name in ('n', 'alpha', 'sigma'))
    limit = bounds.certified_radius(bounds.clopper_pearson_lower(n, n, alpha), sigma)
    # Of a grid the largest radius ends it.
    most = '' if settings.get('radii') else (
        f' With n = {n:,} draws no radius can exceed {float(limit):.3f}.')
    notes.insert(0, (
        f'Attacked, and clean, is the network itself, without noise. Certified is its smoothed '
        f'version, σ = {sigma:g} for all, whatever noise it was trained with; an abstention counts '
        f'as wrong.{most}'))
  return notes


def _drawing(panel):
  means = [[analysis.mean_interval(column.figures(i)) for i in range(len(panel.groups))]
           for column in panel.columns]
  caption, sigma = comparison_tables.tables(panel)['figures'][0], _settings(panel).get('sigma')
  certified = f'; certified with noise {sigma:g}, attacked without' if sigma else ''
  return curves.draw_table(
      caption + certified, [group.label for group in panel.groups],
      [(column.title.replace('ℓ₂', 'l2'), *np.array(values).T, column.decimals)
       for column, values in zip(panel.columns, means)])
