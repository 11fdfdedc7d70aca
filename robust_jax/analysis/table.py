"""One small table and its four ways to the page: CSV, Markdown, LaTeX and plain text.

Cells are strings, or numbers that are shown with up to six significant digits; None is empty. A
`Best` cell is set off: bold where there is bold, a star in plain text, nothing in CSV.
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


class Best(str):
  """The text of a cell that is the best of its column."""


def to_csv(table: Table) -> str:
  """Comma-separated, one title line, quoted where needed."""
  file = io.StringIO()
  csv.writer(file, lineterminator='\n').writerows(_cells(table))
  return file.getvalue()


def to_markdown(table: Table) -> str:
  """A GitHub table whose source is aligned too; numbers to the right."""
  cells = _cells(table, lambda cell: cell.replace('|', '\\|'), '**{}**')
  right, widths = right_aligned(table), _widths(cells, least=3)
  ruler = [('-' * (width - 1) + ':') if end else '-' * width for end, width in zip(right, widths)]
  title, *rows = _padded(cells, widths, right)
  return ''.join(f'| {" | ".join(row)} |\n' for row in [title, ruler, *rows])


def to_latex(table: Table) -> str:
  """A `tabular` in the style of booktabs (needs `\\usepackage{booktabs}`)."""
  cells = _cells(table, _latex, r'\textbf{{{}}}')
  title, *rows = (' & '.join(row) + r' \\' for row in cells)
  spec = ''.join('r' if end else 'l' for end in right_aligned(table))
  lines = [f'\\begin{{tabular}}{{{spec}}}', r'\toprule', title, r'\midrule', *rows,
           r'\bottomrule', r'\end{tabular}']
  return '\n'.join(lines) + '\n'


def to_text(table: Table, width=None) -> str:
  """For a terminal: columns two spaces apart under a ruled title, and what a star means.

  Args:
    table: the table.
    width: where its lines would be longer than this, the columns are shown in several blocks
      under each other, each with the first column; None: lines of any length.
  """
  starred = [any(isinstance(row[i], Best) for row in table.rows) for i in range(len(table.columns))]
  # Where a column has a star, a space takes its place elsewhere: the figures stay aligned.
  cells = [[cell if cell.endswith('*') or not (star and cell) else f'{cell} '
            for cell, star in zip(row, starred)] for row in _cells(table, mark='{}*')]
  widths = _widths(cells)
  columns = list(zip(*_padded(cells, widths, right_aligned(table))))
  blocks = [_block([columns[i] for i in block], [widths[i] for i in block])
            for block in _blocks(widths, width)]
  return '\n'.join([*blocks, '* the best of its column\n'] if any(starred) else blocks)


def _block(columns, widths):
  title, *rows = zip(*columns)
  ruler = ['-' * width for width in widths]
  return ''.join('  '.join(row).rstrip() + '\n' for row in [title, ruler, *rows])


def _blocks(widths, limit):
  """Lists of the columns that are shown together: the first, and as many as there is room for."""
  blocks = [[0]]
  for i in range(1, len(widths)):
    needed = sum(widths[j] + 2 for j in blocks[-1]) + widths[i]
    if limit is not None and needed > limit and len(blocks[-1]) > 1:
      blocks.append([0])
    blocks[-1].append(i)
  return blocks


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


def _cells(table, escape=str, mark='{}'):
  """The texts of the title row and the rows; those that are `Best` as in `mark`."""
  show = lambda cell: (mark if isinstance(cell, Best) else '{}').format(escape(format_cell(cell)))
  return [[show(cell) for cell in row] for row in [table.columns, *table.rows]]


def _is_number(text):
  # 57.0%, 8/255, 52.1–61.4, 57.0 (52.1–61.4), +1.2 ± 0.3, +1.2 [+0.9, +1.5], 427 of 500 and
  # 97.1 (n=2) are too.
  return re.fullmatch(r'(≥ )?[-+−]?[\d.,]+(e[+-]?\d+)?%?([–/][\d.,]+| \([\d.]+–[\d.]+\)'
                      r'| ± [\d.,]+| \[[-+][\d.]+, [-+][\d.]+\]| of \d+)?( \(n=\d+\))?|–|nan|-?inf',
                      text) is not None


def _widths(cells, least=1):
  return [max(least, *map(len, column)) for column in zip(*cells)]


def _padded(cells, widths, right):
  return [[cell.rjust(width) if end else cell.ljust(width)
           for cell, width, end in zip(row, widths, right)] for row in cells]


_LATEX = {char: '\\' + char for char in '&%$#_{}'}
_LATEX |= {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
           '–': '--', '−': '$-$', '×': r'$\times$', '±': r'$\pm$', 'Δ': r'$\Delta$',
           '≥': r'$\geq$', 'ε': r'$\varepsilon$', 'σ': r'$\sigma$', 'ℓ': r'$\ell$',
           '₁': '$_1$', '₂': '$_2$', '∞': r'$_\infty$'}


def _latex(text):
  return ''.join(_LATEX.get(char, char) for char in text)
