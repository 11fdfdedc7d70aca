"""One small table and its four ways to the page: CSV, Markdown, LaTeX and plain text.

Cells are strings, or numbers that are shown with up to six significant digits; None is empty.
"""

import csv
import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple


class Table(NamedTuple):
  """A table.

  Attributes:
    columns: the names of the columns.
    rows: sequences of as many cells.
  """

  columns: Sequence[str]
  rows: Sequence[Sequence[Any]]


def to_csv(table: Table) -> str:
  """Comma-separated, one title line, quoted where needed."""
  file = io.StringIO()
  csv.writer(file, lineterminator='\n').writerows(_cells(table))
  return file.getvalue()


def to_markdown(table: Table) -> str:
  """A GitHub table whose source is aligned too; numbers to the right."""
  cells = [[cell.replace('|', '\\|') for cell in row] for row in _cells(table)]
  right, widths = right_aligned(table), _widths(cells, least=3)
  ruler = [('-' * (width - 1) + ':') if end else '-' * width for end, width in zip(right, widths)]
  title, *rows = _padded(cells, widths, right)
  return ''.join(f'| {" | ".join(row)} |\n' for row in [title, ruler, *rows])


def to_latex(table: Table) -> str:
  """A `tabular` in the style of booktabs (needs `\\usepackage{booktabs}`)."""
  cells = [[_latex(cell) for cell in row] for row in _cells(table)]
  title, *rows = (' & '.join(row) + r' \\' for row in cells)
  spec = ''.join('r' if end else 'l' for end in right_aligned(table))
  lines = [f'\\begin{{tabular}}{{{spec}}}', r'\toprule', title, r'\midrule', *rows,
           r'\bottomrule', r'\end{tabular}']
  return '\n'.join(lines) + '\n'


def to_text(table: Table) -> str:
  """For a terminal: columns two spaces apart under a ruled title."""
  cells = _cells(table)
  widths = _widths(cells)
  title, *rows = _padded(cells, widths, right_aligned(table))
  ruler = ['-' * width for width in widths]
  return ''.join('  '.join(row).rstrip() + '\n' for row in [title, ruler, *rows])


def right_aligned(table: Table) -> list[bool]:
  """For each column, whether it holds numbers: they are aligned to the right."""
  columns = list(zip(*_cells(table)[1:])) or [()] * len(table.columns)
  return [any(column) and all(map(_is_number, filter(None, column))) for column in columns]


def format_cell(cell) -> str:
  """The text of a cell."""
  if cell is None:
    return ''
  if isinstance(cell, str):
    return cell
  return f'{cell:.6g}' if isinstance(cell, float) else str(cell)


def _cells(table):
  return [[format_cell(cell) for cell in row] for row in [table.columns, *table.rows]]


def _is_number(text):
  # 57.0%, 8/255 and 52.1–61.4 are numbers too.
  return re.fullmatch(r'-?[\d.,]+(e[+-]?\d+)?%?([–/][\d.,]+)?|–|nan|-?inf', text) is not None


def _widths(cells, least=1):
  return [max(least, *map(len, column)) for column in zip(*cells)]


def _padded(cells, widths, right):
  return [[cell.rjust(width) if end else cell.ljust(width)
           for cell, width, end in zip(row, widths, right)] for row in cells]


_LATEX = {char: '\\' + char for char in '&%$#_{}'}
_LATEX |= {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
           '–': '--', '×': r'$\times$', 'ε': r'$\varepsilon$', 'σ': r'$\sigma$',
           'ℓ': r'$\ell$', '₁': '$_1$', '₂': '$_2$', '∞': r'$_\infty$'}


def _latex(text):
  return ''.join(_LATEX.get(char, char) for char in text)
