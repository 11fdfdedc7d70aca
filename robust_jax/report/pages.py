"""Pages by Jinja2 templates: the environment, and values as a reader has them."""

import base64
import datetime
import math
import re

import jinja2
from markupsafe import Markup

from robust_jax import analysis
from robust_jax.analysis import table
from robust_jax.report import charts

# {ending: (name, writer)} of the files of a table.
FORMATS = {'csv': ('CSV', analysis.to_csv), 'md': ('Markdown', analysis.to_markdown),
           'tex': ('LaTeX', analysis.to_latex)}


def render(template: str, **values) -> str:
  """A page that needs nothing else, from a template of this package and its values."""
  return _environment().get_template(template).render(values)


def _environment():
  environment = jinja2.Environment(
      loader=jinja2.PackageLoader(__package__), autoescape=True, lstrip_blocks=True,
      undefined=jinja2.StrictUndefined)
  environment.filters |= {'date': date, 'text': text, 'percent': percent, 'duration': duration}
  environment.globals |= {
      'palette': charts.PALETTE, 'formats': FORMATS, 'right_aligned': table.right_aligned,
      'norm': norm,
      'parted': _parted, 'is_best': lambda cell: isinstance(cell, analysis.Best),
      'base64': lambda content: base64.b64encode(content.encode()).decode(),
      'inline_svg': lambda chart: Markup(charts.inline_svg(chart))}
  return environment


def _parted(cell):
  """(figure, its interval or '') of a cell, for which there may be room in two lines alone."""
  shown = table.format_cell(cell)
  at = re.search(r' (?=± |\[[-+])', shown)
  return (shown[:at.start()], shown[at.end():].replace('± ', '±\u00a0')) if at else (shown, '')


def text(value) -> str:
  """A value of a config or a record."""
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


def percent(fraction) -> str:
  """A fraction in per cent; – of NaN."""
  return '–' if math.isnan(fraction) else f'{100 * fraction:.1f}%'


def duration(seconds) -> str:
  """Seconds as a person says them."""
  if seconds < 120:
    return f'{seconds:.3g} s'
  minutes = round(seconds / 60)
  return f'{minutes} min' if minutes < 120 else f'{minutes // 60} h {minutes % 60:02d} min'


def norm(name) -> str:
  """ℓ∞, ℓ₂ or ℓ₁; an attack's own word for anything else."""
  return {'linf': 'ℓ∞', 'l2': 'ℓ₂', 'l1': 'ℓ₁'}.get(str(name), str(name))


def epsilon_axis(name, epsilons) -> tuple[float, str]:
  """(scale, label) of an axis of epsilons of a norm: in 255ths where all are whole numbers of them.
  """
  label = f'{norm(name)} ε'.strip()
  whole = all('/' in epsilon(value) for value in epsilons)
  return (255., f'{label}, in 255ths') if whole else (1., label)


def epsilon(value) -> str:
  """An epsilon; in 255ths where it is a whole number of them below 0.2, as 8/255."""
  steps = value * 255
  if 0 < value < 0.2 and abs(steps - round(steps)) < 1e-3:
    return f'{round(steps)}/255'
  return f'{value:.4g}'
