"""The table of training methods: many configs, several seeds, judged alike (docs/methods.md)."""

from pathlib import Path
from typing import NamedTuple

from robust_jax import report

_BEGIN, _END = '<!-- measured -->\n', '<!-- end -->'


class MethodsTable(NamedTuple):
  """What was written: the path of the page, and the table for a terminal."""

  page: Path
  summary: str


def compare(folder, rows, failed=()):
  """Writes table.html, table.csv|.md|.tex|.png and table_runs.*.

  Args:
    folder: where to.
    rows: {name: workdirs of its seeds}.
    failed: {workdir: message} of those that are not finished.
  """
  failed, runs = dict(failed), []
  for name, places in rows.items():
    found = [report.load(place) for place in places if place.is_dir()]
    runs += [run._replace(experiment=name) for run in found
             if run.path not in failed or any(run.metrics.values())]
  page, summary = report.compare_contents(runs, Path(folder) / 'table.html')
  return MethodsTable(page, summary)


def write_docs(table, page):
  """Puts the table between the markers of a Markdown page, and as .csv and .png beside it."""
  before, rest = page.read_text(encoding='utf-8').split(_BEGIN)
  for end in ('.csv', '.png'):
    page.with_suffix(end).write_bytes(table.page.with_suffix(end).read_bytes())
  measured = table.page.with_suffix('.md').read_text(encoding='utf-8')
  page.write_text(f'{before}{_BEGIN}{measured}{_END}{rest.partition(_END)[2]}', encoding='utf-8')
