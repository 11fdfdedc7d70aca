"""The page of a run, or of several, and its summary for a terminal; reads files, no model.

What draws is imported where it is used: matplotlib takes half a second, for which a command that
trains need not wait.
"""

import shutil
from pathlib import Path

from robust_jax import analysis
from robust_jax.errors import UserError
from robust_jax.report.contents import SWEEP, is_sweep, load, load_all
from robust_jax.workdir import write_bytes

__all__ = ['SWEEP', 'build', 'compare', 'is_sweep', 'summary', 'write_figure', 'write_table']


def build(workdir) -> Path:
  """Writes report.html, one page that needs nothing else, tables/ and figures/.

  A stage that has not run leaves a line that says how to run it.

  Args:
    workdir: the folder of a run.

  Returns:
    The path of report.html.

  Raises:
    UserError: no such folder, or a file in it is malformed.
  """
  from robust_jax.report import run
  contents = load(workdir)
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
    workdirs: folders of runs; that of a sweep stands for all of its runs.
    output: path of the page, whose name the tables have too. By default sweep.html in the folder
      where there is one and it is a sweep's, else compare.html here.

  Returns:
    (path of the page, the tables of figures for a terminal).

  Raises:
    UserError: no such folder, a malformed file, or nothing measured in any.
  """
  if output is None:
    one_sweep = len(workdirs) == 1 and is_sweep(workdirs[0])
    output = Path(workdirs[0]) / 'sweep.html' if one_sweep else 'compare.html'
  return compare_contents(load_all(workdirs), Path(output))


def compare_contents(runs, output: Path) -> tuple[Path, str]:
  """`compare` of runs that are read already."""
  from robust_jax.report import charts, comparison, comparison_page
  panels, files = comparison.compare(runs), []
  try:
    for panel in panels:
      stem = output.stem
      if len(panels) > 1:  # Each dataset has its files.
        stem += '_' + ''.join(char if char.isalnum() else '_' for char in panel.dataset)
      tables = comparison.tables(panel)
      names = {name: f'{stem}_{name}' for name in tables} | {'figures': stem}
      for name in {'figures', 'runs'} & tables.keys():
        write_table(output.parent / names[name], tables[name][1])
      write_bytes(output.parent / f'{stem}.png', charts.render(comparison.bars(panel), 'png'))
      for chart in comparison_page.robustness_charts(panel):
        written = write_figure(output.parent / f'{stem}_{chart.name}', chart)
        names[chart.name] = [path.name for path in written]
      files.append(names)
    write_bytes(output, comparison_page.page(panels, output, files).encode())
  except OSError as error:
    raise UserError(f'--output: {output} cannot be written ({error.strerror})') from error
  return output, _compare_summary(comparison.title(panels), [
      (panel, *comparison.tables(panel)['figures']) for panel in panels])


def _compare_summary(title, panels):
  width = shutil.get_terminal_size().columns
  parts = [title]
  for panel, caption, table in panels:
    caption = f'{panel.dataset}. {caption}' if len(panels) > 1 else caption
    parts.append(f'{caption}\n\n{analysis.to_text(table, width)}')
    parts += [f'note: {note}' for note in panel.notes]
  return '\n\n'.join(part.rstrip() for part in parts) + '\n'


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
