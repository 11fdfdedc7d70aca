"""The page of a run, or of several, and its summary for a terminal; reads files, no model."""

import shutil
from pathlib import Path

from robust_jax import analysis
from robust_jax.errors import UserError
from robust_jax.report import (
    comparison,
    comparison_page,
    comparison_tables,
    contents,
    markup,
    page,
    results,
)
from robust_jax.report.contents import load
from robust_jax.workdir import write_bytes

__all__ = ['SWEEP', 'build', 'compare', 'summary']

# In the folder of a sweep: which runs it has.
SWEEP = contents.SWEEP


def build(workdir) -> Path:
  """Writes report.html, one page that needs nothing else, and tables/*.csv|.md|.tex.

  A stage that has not run leaves a line that says how to run it.

  Args:
    workdir: the folder of a run.

  Returns:
    The path of report.html.

  Raises:
    UserError: no such folder, or a file in it is malformed.
  """
  run = load(workdir)
  tables = results.tables(run)
  folder = run.path / 'tables'
  folder.mkdir(exist_ok=True)
  for name, (_, table) in tables.items():
    _write_table(folder / name, table)
  path = run.path / 'report.html'
  write_bytes(path, page.render(run, tables).encode())
  return path


def summary(workdir) -> str:
  """The key figures of a run as a table for a terminal."""
  run = load(workdir)
  table = results.tables(run)['summary'][1]
  rows = analysis.to_text(table) if table.rows else 'nothing measured yet\n'
  unfinished = ''.join(f'note: the {stage} stage is not finished\n'
                       for stage, record in run.stages.items() if record.get('status') != 'done')
  return f'{page.title(run)}\n{unfinished}\n{rows}'


def compare(workdirs, output=None) -> tuple[Path, str]:
  """Writes one page on several runs, and beside it the table of their figures.

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
    one_sweep = len(workdirs) == 1 and contents.is_sweep(workdirs[0])
    output = Path(workdirs[0]) / 'sweep.html' if one_sweep else 'compare.html'
  output = Path(output)
  panels = comparison.compare(contents.load_all(workdirs))
  try:
    for panel in panels:
      stem = comparison_page.file_name(panel, panels, output.stem)
      _write_table(output.parent / stem, comparison_tables.tables(panel)['figures'][1])
    write_bytes(output, comparison_page.render(panels, output).encode())
  except OSError as error:
    raise UserError(f'--output is {output}; a file in a folder that can be written is allowed '
                    f'({error.strerror})') from error
  return output, _compare_summary(panels)


def _compare_summary(panels):
  width = shutil.get_terminal_size().columns
  parts = [comparison.title(panels)]
  for panel in panels:
    caption, table = comparison_tables.tables(panel)['figures']
    if len(panels) > 1:
      caption = f'{panel.dataset or "unnamed data"}. {caption}'
    parts.append(f'{caption}\n\n{analysis.to_text(table, width)}')
    parts += [f'note: {note}' for note in panel.notes]
  return '\n\n'.join(part.rstrip() for part in parts) + '\n'


def _write_table(stem, table):
  for end, write in markup.WRITERS.items():
    write_bytes(f'{stem}.{end}', write(table).encode())
