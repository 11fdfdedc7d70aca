"""The page of a run, and its summary for a terminal; reads the files of a workdir, no model."""

from pathlib import Path

from robust_jax import analysis
from robust_jax.report import page, results
from robust_jax.report.contents import load

__all__ = ['build', 'summary']


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
    for end, write in page.WRITERS.items():
      (folder / f'{name}.{end}').write_text(write(table), encoding='utf-8')
  path = run.path / 'report.html'
  path.write_text(page.render(run, tables), encoding='utf-8')
  return path


def summary(workdir) -> str:
  """The key figures of a run as a table for a terminal."""
  run = load(workdir)
  table = results.tables(run)['summary'][1]
  rows = analysis.to_text(table) if table.rows else 'nothing measured yet\n'
  return f'{page.title(run)}\n\n{rows}'
