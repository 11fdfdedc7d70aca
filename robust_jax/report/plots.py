"""Line charts as inline SVG. Colours and fonts come from the page's style sheet, by class."""

import math
from html import escape
from typing import NamedTuple

import numpy as np

MAX_POINTS = 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 44


class Series(NamedTuple):
  """One line of a chart.

  Attributes:
    name: its name in the legend; '' for a line that is not told apart from others of its style.
    style: its classes in the style sheet: train, test, certified, attack or `palette(i)`, and
      thin for a line behind others.
    x: [num_points] ascending.
    y: [num_points].
    interval: None, or (low, high), [num_points] each: a band, or whiskers at marks.
    steps: each y holds back to the previous x, as a non-increasing step function needs it.
    marks: a dot at every point, with its figures as a tooltip.
  """

  name: str
  style: str
  x: np.ndarray
  y: np.ndarray
  interval: tuple[np.ndarray, np.ndarray] | None = None
  steps: bool = False
  marks: bool = False


def chart(series, *, title, x_label, y_limits=None, x_limits=None, percent=False, width=400,
          height=250, with_legend=True):
  """A figure with a title, a legend and axes.

  Args:
    series: the lines, first to last drawn; empty ones are left out.
    title: what the y axis shows.
    x_label: what the x axis shows.
    y_limits: (low, high), or None for the range of the data.
    x_limits: the same for x.
    percent: whether y is a fraction to be shown in per cent.
    width: of the drawing in units of its text, which is 12 high. The page scales it.
    height: of the drawing.
    with_legend: whether the names of the lines are above it.

  Returns:
    HTML; '' if there is nothing to draw.
  """
  series = [line for line in map(_finite, series) if len(line.x)]
  if not series:
    return ''
  all_x = np.concatenate([line.x for line in series])
  all_y = np.concatenate([line.y for line in series])
  x_low, x_high = x_limits or _spread(all_x.min(), all_x.max())
  logarithmic = y_limits is None and not percent and 0 < 50 * all_y.min() < all_y.max()
  if logarithmic:
    y_ticks = _log_ticks(all_y.min(), all_y.max())
    y_low, y_high = min(y_ticks[0], all_y.min()), max(y_ticks[-1], all_y.max())
    across = lambda y: np.log(y / y_low) / math.log(y_high / y_low)
  else:
    y_low, y_high = y_limits or _y_range(all_y, percent)
    y_ticks = ticks(y_low, y_high)
    across = lambda y: (y - y_low) / (y_high - y_low)

  def to_x(x):
    return _LEFT + (np.asarray(x) - x_low) / (x_high - x_low) * (width - _LEFT - _RIGHT)

  def to_y(y):
    return height - _BOTTOM - across(np.asarray(y)) * (height - _TOP - _BOTTOM)

  parts = []
  for y in y_ticks:
    label = f'{100 * y:.6g}%' if percent else _short(y)
    parts.append(f'<path class="grid" d="M{_LEFT} {to_y(y):.1f}H{width - _RIGHT}"/>'
                 f'<text x="{_LEFT - 7}" y="{to_y(y) + 4:.1f}" text-anchor="end">{label}</text>')
  for x in ticks(x_low, x_high, 6):
    parts.append(f'<path class="tick" d="M{to_x(x):.1f} {height - _BOTTOM}v4"/>'
                 f'<text x="{to_x(x):.1f}" y="{height - _BOTTOM + 19}" text-anchor="middle">'
                 f'{_short(x)}</text>')
  parts.append(f'<path class="axis" d="M{_LEFT} {height - _BOTTOM}H{width - _RIGHT}"/>'
               f'<text x="{(_LEFT + width - _RIGHT) / 2:.1f}" y="{height - 5}" '
               f'text-anchor="middle">{escape(x_label)}</text>')
  parts += [_draw(line, to_x, to_y, percent, x_label) for line in series]
  names = legend([(line.name, line.style) for line in series if line.name]) if with_legend else ''
  scale = ' <small>(log scale)</small>' if logarithmic else ''
  return (f'<figure class="chart"><figcaption><b>{escape(title)}</b>{scale} {names}</figcaption>'
          f'<svg class="{"wide" if width > 400 else "small"}" viewBox="0 0 {width} {height}" '
          f'role="img" '
          f'aria-label="{escape(_spoken(series, title, x_label, percent))}">'
          f'{"".join(parts)}</svg></figure>')


def legend(entries):
  """HTML of the names of lines, from (name, style) of each."""
  return ''.join(f'<span class="key {style}">{escape(name)}</span>' for name, style in entries)


def palette(number):
  """The style of the number-th of several lines: eight colours, then the same ones dashed.

  From the 33rd on they come again.
  """
  dash = number // 8 % 4
  return f'c{number % 8}' + (f' dash{dash}' if dash else '')


def average(x, y, count=MAX_POINTS):
  """Thins a long line: means over consecutive groups of equal size, `count` at most."""
  if len(x) <= count:
    return np.asarray(x, float), np.asarray(y, float)
  return tuple(np.array([part.mean() for part in np.array_split(np.asarray(values, float), count)])
               for values in (x, y))


def ticks(low, high, count=5):
  """Round numbers within [low, high], about `count` of them."""
  raw = (high - low) / count
  power = 10.0 ** math.floor(math.log10(raw))
  step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= 0.999 * raw)
  numbers = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
  return [float(f'{number:.10g}') for number in numbers]


def _log_ticks(low, high):
  powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  every = math.ceil(len(powers) / 6)
  return [10.0 ** power for power in powers[::every]]


def _y_range(values, percent):
  """From zero, unless accuracies are so high that their differences would not show."""
  low, high = min(values.min(), 0.0), values.max()
  if percent and high <= 1:
    low = math.floor(10 * values.min() - 0.1) / 10 if values.min() > 0.7 else low
    return max(low, 0.0), 1.0
  low, high = _spread(low, high)
  return low, high + 0.04 * (high - low)


def _spread(low, high):
  return (low, high) if high > low else (low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1))


def _finite(line):
  x, y = np.asarray(line.x, float), np.asarray(line.y, float)
  keep = np.isfinite(x) & np.isfinite(y)
  interval = line.interval and tuple(np.asarray(end)[keep] for end in line.interval)
  return line._replace(x=x[keep], y=y[keep], interval=interval)


def _draw(line, to_x, to_y, percent, x_label):
  x, y = to_x(line.x), to_y(line.y)
  parts = []
  if line.interval is not None:
    low, high = (to_y(end) for end in line.interval)
    if line.marks:
      bars = ''.join(f'M{a:.1f} {b:.1f}V{c:.1f}' for a, b, c in zip(x, low, high))
      parts.append(f'<path class="whisker {line.style}" d="{bars}"/>')
    else:
      back = _path(x[::-1], low[::-1], line.steps, backward=True)
      parts.append(f'<path class="band {line.style}" '
                   f'd="{_path(x, high, line.steps)}L{back[1:]}Z"/>')
  parts.append(f'<path class="line {line.style}" d="{_path(x, y, line.steps)}"/>')
  if line.marks or len(x) == 1:
    for a, b, value_x, value_y in zip(x, y, line.x, line.y):
      value = f'{100 * value_y:.1f}%' if percent else f'{value_y:.4g}'
      parts.append(f'<circle class="mark {line.style}" cx="{a:.1f}" cy="{b:.1f}" r="3.5">'
                   f'<title>{escape(f"{line.name}, {x_label} {value_x:.4g}: {value}")}</title>'
                   '</circle>')
  return ''.join(parts)


def _path(x, y, steps, backward=False):
  start = f'M{x[0]:.1f} {y[0]:.1f}'
  if not steps:
    return start + ''.join(f'L{a:.1f} {b:.1f}' for a, b in zip(x[1:], y[1:]))
  if backward:
    return start + ''.join(f'H{a:.1f}V{b:.1f}' for a, b in zip(x[1:], y[1:]))
  return start + ''.join(f'V{b:.1f}H{a:.1f}' for a, b in zip(x[1:], y[1:]))


def _short(number):
  if abs(number) >= 10000:
    return f'{number / 1000:.6g}k'
  return f'{number:.6g}' if abs(number) >= 1e-3 or number == 0 else f'{number:.0e}'


def _spoken(series, title, x_label, percent):
  show = lambda value: f'{100 * value:.1f}%' if percent else f'{value:.3g}'
  lines = [f'{line.name} goes from {show(line.y[0])} at {line.x[0]:.3g} '
           f'to {show(line.y[-1])} at {line.x[-1]:.3g}' for line in series if line.name]
  return f'{title} against {x_label}: {"; ".join(lines)}.'
