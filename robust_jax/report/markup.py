"""HTML that every page uses: the shell, sections, tables with their downloads, values as text."""

import base64
import datetime
import importlib.resources
import string
from html import escape
from urllib.parse import quote

from robust_jax import analysis

WRITERS = {'csv': analysis.to_csv, 'md': analysis.to_markdown, 'tex': analysis.to_latex}
_FORMATS = {'csv': 'CSV', 'md': 'Markdown', 'tex': 'LaTeX'}


def page(title, facts, body) -> str:
  """A whole page that needs nothing else.

  Args:
    title: text.
    facts: texts below the title.
    body: HTML.
  """
  shell = importlib.resources.files(__package__).joinpath('page.html')
  return string.Template(shell.read_text(encoding='utf-8')).substitute(
      title=escape(title), body=body,
      facts=''.join(f'<li>{escape(fact)} </li>' for fact in facts))


def section(name, title, content):
  """A section with a heading; `name` is its id, `content` HTML."""
  return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n{content}\n</section>\n'


def beside(left, right):
  """Two columns, one below the other where there is no room."""
  return f'<div class="beside"><div>{left}</div><div>{right}</div></div>'


def table(values, caption='', keys=(), *, style=''):
  """A table as HTML.

  Args:
    values: `analysis.Table`.
    caption: text.
    keys: for each row the style of its line in the charts, shown before the first cell; or ().
    style: class of the table; 'wide' for one of many columns, whose first stays in view.
  """
  ends = analysis.table.right_aligned(values)

  def row(tag, cells, key=None):
    parts = []
    for i, (cell, end) in enumerate(zip(cells, ends)):
      style = ('n' if end else 'v') + (' best' if isinstance(cell, analysis.Best) else '')
      chip = f'<span class="key {key}"></span>' if key and i == 0 else ''
      text = escape(analysis.table.format_cell(cell))
      parts.append(f'<{tag} class="{style}">{chip}{text}</{tag}>')
    return f'<tr>{"".join(parts)}</tr>'

  above = inside = ''
  if caption and style == 'wide':  # It would go out of view with the columns.
    above = f'<p class="caption">{escape(caption)}</p>'
  elif caption:
    inside = f'<caption>{escape(caption)}</caption>'
  keys = keys or [None] * len(values.rows)
  body = ''.join(row('td', cells, key) for cells, key in zip(values.rows, keys))
  return (f'{above}<div class="scroll"><table class="{style}">{inside}'
          f'<thead>{row("th", values.columns)}</thead><tbody>{body}</tbody></table></div>')


def files(name, values, folder=None):
  """Links that carry a table in themselves, so that the page alone is enough.

  Args:
    name: of the files, without an ending.
    values: `analysis.Table`.
    folder: where the same files lie, as seen from the page; None: nowhere.
  """
  links, shown = [], escape(name)
  for end, write in WRITERS.items():
    content = base64.b64encode(write(values).encode()).decode()
    links.append(f'<a download="{shown}.{end}" href="data:text/plain;base64,{content}">'
                 f'{_FORMATS[end]}</a>')
  lying = '' if folder is None else 'Beside this page: ' + ', '.join(
      f'<a href="{folder}{quote(name)}.{end}">{shown}.{end}</a>' for end in WRITERS)
  return (f'<div class="files"><span>Download {" · ".join(links)}</span>'
          f'<details><summary>Copy</summary><pre>{escape(analysis.to_markdown(values))}</pre>'
          f'<pre>{escape(analysis.to_latex(values))}</pre>{lying}</details></div>')


def text(value) -> str:
  """A value of a config or a record, for a reader."""
  if isinstance(value, str):
    return value
  if isinstance(value, float):
    return f'{value:.6g}'
  if isinstance(value, list | tuple):
    return ', '.join(map(text, value))
  if isinstance(value, dict):
    return ', '.join(f'{key} {text(each)}' for key, each in value.items())
  return str(value)


def date(value) -> str:
  """An ISO date and time to the minute."""
  if not value:
    return ''
  try:
    return f'{datetime.datetime.fromisoformat(value):%Y-%m-%d %H:%M %Z}'.strip()
  except ValueError:
    return str(value)
