"""The page of a run, or of several, and its summary for a terminal; reads files, no model.

What draws is imported where it is used: matplotlib takes half a second, for which a command that
trains need not wait.
"""

import re
import shutil
from pathlib import Path

from robust_jax import analysis
from robust_jax.errors import UserError
from robust_jax.report.contents import SWEEP, is_run, is_sweep, load, load_all, runs_in
from robust_jax.workdir import read_json, write_bytes

__all__ = ['SWEEP', 'build', 'build_image', 'compare', 'is_sweep', 'runs_in', 'summary',
           'write_figure', 'write_table']


def build(workdir) -> Path:
  """Writes report.html, one page that needs nothing else, tables/ and figures/.

  A stage that has not run leaves a line that says how to run it.

  Args:
    workdir: the folder of a run.

  Returns:
    The path of report.html.

  Raises:
    UserError: no such folder, no run in it, or a file in it is malformed.
  """
  from robust_jax.report import run
  contents = load(workdir)
  if not is_run(contents.path):
    raise UserError(f'workdir {workdir}: no run in this folder, which has no config.json, nor '
                    'metrics or logs')
  tables, figures, files = run.tables(contents), run.figures(contents), {}
  for folder in ('tables', 'figures'):
    (contents.path / folder).mkdir(exist_ok=True)
  for name, (_, table) in tables.items():
    write_table(contents.path / 'tables' / name, table)
  for name, chart in figures.items():
    written = write_figure(contents.path / 'figures' / name, chart)
    files[name] = [f'figures/{path.name}' for path in written]
  path = contents.path / 'report.html'
  write_bytes(path, run.page(contents, tables, figures, files).encode())
  return path


def build_image(path) -> tuple[Path, str]:
  """Writes the page of an image file that was attacked, as NAME.html.

  Args:
    path: NAME.json, which `--stages=attack_image` has written beside the images.

  Returns:
    (path of the page, lines for a terminal).
  """
  from robust_jax.report import attack_image
  record, page = read_json(path), Path(path).with_suffix('.html')
  write_bytes(page, attack_image.page(record, page.parent).encode())
  return page, attack_image.lines(record)


def summary(workdir) -> str:
  """The key figures of a run as a table for a terminal."""
  from robust_jax.report import run
  contents = load(workdir)
  table = run.tables(contents)['summary'][1]
  rows = analysis.to_text(table) if table.rows else 'nothing measured yet\n'
  unfinished = ''.join(f'note: the {stage} stage is not finished\n'
                       for stage, record in contents.stages.items()
                       if record.get('status') != 'done')
  return f'{run.title(contents)}\n{unfinished}\n{rows}'


def compare(workdirs, output=None) -> tuple[Path, str]:
  """Writes one page on several runs, and beside it their tables and figures.

  With NAME.html as the page these are NAME.csv|.md|.tex|.png, the figures of all, NAME_runs.csv|...
  of each run where there are seeds, and the charts, NAME_certified.svg|.pdf and the like.

  Args:
    workdirs: folders of runs; a folder of several, as a sweep's, stands for all of them.
    output: path of the page, whose name the tables have too. By default sweep.html in the folder
      where there is one and it is a sweep's, else compare.html here.

  Returns:
    (path of the page, the tables of figures for a terminal).

  Raises:
    UserError: no such folder, a malformed file, or nothing measured in any.
  """
  from robust_jax.report import comparison, comparison_page
  if output is None:
    one_sweep = len(workdirs) == 1 and is_sweep(workdirs[0])
    output = Path(workdirs[0]) / 'sweep.html' if one_sweep else 'compare.html'
  panels, output = comparison.compare(load_all(workdirs)), Path(output)
  parts, files, width = [comparison.title(panels)], [], shutil.get_terminal_size().columns
  try:
    for panel in panels:
      several = len(panels) > 1  # Each dataset has its files then.
      stem = output.stem + (re.sub(r'\W', '_', f'_{panel.dataset}') if several else '')
      files.append(_write_panel(panel, output.parent / stem))
      caption, table = comparison.tables(panel)['figures']
      parts += [f'{panel.dataset}. {caption}' if several else caption,
                analysis.to_text(table, width), *(f'note: {note}' for note in panel.notes)]
    write_bytes(output, comparison_page.page(panels, output, files).encode())
  except OSError as error:
    raise UserError(f'--output: {output} cannot be written ({error.strerror})') from error
  return output, '\n\n'.join(part.rstrip() for part in parts) + '\n'


def _write_panel(panel, stem):
  """Writes the files of the runs on one dataset; {name of a table or figure: of its files}."""
  from robust_jax.report import charts, comparison, comparison_page
  tables = comparison.tables(panel)
  names = {name: f'{stem.name}_{name}' for name in tables} | {'figures': stem.name}
  for name in {'figures', 'runs'} & tables.keys():
    write_table(stem.with_name(names[name]), tables[name][1])
  write_bytes(f'{stem}.png', charts.render(comparison.bars(panel), 'png'))
  for chart in comparison_page.robustness_charts(panel):
    written = write_figure(f'{stem}_{chart.name}', chart)
    names[chart.name] = [path.name for path in written]
  return names


def write_table(stem, table):
  """Writes a table as `stem`.csv, .md and .tex."""
  from robust_jax.report import pages
  for end, (_, write) in pages.FORMATS.items():
    write_bytes(f'{stem}.{end}', write(table).encode())


def write_figure(stem, chart) -> list[Path]:
  """Writes a chart that has points as `stem`.svg and .pdf, for a paper."""
  from robust_jax.report import charts
  paths = [Path(f'{stem}.{end}') for end in ('svg', 'pdf') if chart.drawn]
  for path in paths:
    write_bytes(path, charts.render(charts.draw(chart), path.suffix[1:]))
  return paths
