"""Accuracy against radius, or a table with bars, as a drawing, SVG or PNG.

A drawing is a list of shapes in a box of WIDTH units, unless told otherwise, which `to_svg` and
`to_png` paint alike:
    ('line', points, colour, width, dash)      dash: (on, off) in units, or ()
    ('area', points, colour)                   a translucent polygon
    ('text', (x, y), text, anchor)             y is the baseline; anchor: 'start' or 'middle', 'end'
"""

import colorsys
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from robust_jax.analysis.certified import accuracy_interval, certified_accuracy, decided_radii
from robust_jax.certification.log import Log
from robust_jax.errors import UserError

WIDTH = 720
_LEFT, _RIGHT, _TOP, _PLOT = 52, 20, 34, 400
_FONT, _LINE = 13, 20
_INK, _SOFT, _RULE = '#1c2024', '#5c646d', '#e0e2e0'
_COLOURS = ('#1f62ad', '#c4561d', '#13806f', '#8548c2', '#b02a6f', '#86690a', '#55606b', '#4c8a1e')
_DASHES = ((), (7, 4), (2, 3))
# A PNG has this many pixels a unit, drawn _FINER times as fine and scaled down.
_PIXELS, _FINER = 2, 2


def draw(logs: Sequence[Log], names: Sequence[str], *, intervals=False):
  """The curves of logs, one colour each, with a legend below.

  Args:
    logs: [num_logs], none of them empty.
    names: [num_logs], for the legend.
    intervals: whether bands show the 95% intervals of `accuracy_interval`, at each radius by
      itself.

  Returns:
    (shapes, height): see the module; height in its units.
  """
  # A little further than the largest radius, so that every curve is seen to end.
  limit = 1.02 * max(log.radius[log.correct].max(initial=0.) for log in logs) or 1.
  even = np.linspace(0, limit, 601)
  shapes, to_x, to_y = _axes(limit, 'certified accuracy', 'l2 radius')
  curves = []
  for log, (colour, dash) in zip(logs, _styles(len(logs))):
    grid = decided_radii(log)
    radii = even if grid is None else np.union1d(even[even < grid.max()], grid)
    accuracy = certified_accuracy(log, radii)
    # To where it is zero; from there on the axis says so.
    end = np.count_nonzero(accuracy) + 1
    x, accuracy = to_x(radii[:end]), accuracy[:end]
    if intervals:
      low, high = map(to_y, accuracy_interval(accuracy, len(log.idx)))
      shapes.append(('area', _floats([*zip(x, high), *zip(x[::-1], low[::-1])]), colour))
    curves.append(('line', _floats(zip(x, to_y(accuracy))), colour, 2, dash))
  legend, height = _legend(names)
  return shapes + curves + legend, height


def draw_accuracies(lines, names: Sequence[str], *, title, x_label):
  """Accuracies against something else than a radius, one line each.

  Args:
    lines: [num_lines] of (x [points], accuracies [points] in [0, 1]).
    names: [num_lines], for the legend.
    title: what the y axis shows.
    x_label: what the x axis shows.

  Returns:
    (shapes, height), as `draw`.
  """
  limit = max(float(np.max(x, initial=0.)) for x, _ in lines) or 1.
  shapes, to_x, to_y = _axes(limit, title, x_label)
  curves = [('line', _floats(zip(to_x(x), to_y(y))), colour, 2, dash)
            for (x, y), (colour, dash) in zip(lines, _styles(len(lines)))]
  legend, height = _legend(names)
  return shapes + curves + legend, height


def draw_table(title, names, columns):
  """A table of figures with a bar behind each, as long as its share of the column's largest.

  Args:
    title: a line above it.
    names: [num_rows].
    columns: (title, means [num_rows], half-widths [num_rows] of their intervals, decimals) of each;
      NaN where there is none.

  Returns:
    (shapes, height, width): height and width in units.
  """
  left = 12 + 0.56 * _FONT * max(map(len, names))
  cell, row, top = 104, 24, 62
  width = math.ceil(left + cell * len(columns) + 12)
  height = top + row * len(names) + 8
  shapes = [('text', (12, 22), title, 'start')]
  shapes += [('text', (12, top + row * i + 17), name, 'start') for i, name in enumerate(names)]
  for j, (name, means, halves, decimals) in enumerate(columns):
    start, largest = left + cell * j + 8, np.nanmax([*means, 1e-9])
    shapes.append(('text', (start + cell - 14, top - 10), name, 'end'))
    for i, (mean, half) in enumerate(zip(means, halves)):
      if np.isnan(mean):
        continue
      y, end = top + row * i, start + mean / largest * (cell - 10)
      text = f'{mean:.{decimals}f}' + ('' if np.isnan(half) else f' ± {half:.{decimals}f}')
      shapes += [('area', [(start, y + 3), (end, y + 3), (end, y + 21), (start, y + 21)],
                  _COLOURS[0]),
                 ('text', (start + cell - 14, y + 17), text, 'end')]
  shapes += [('line', [(12, top + row * i), (width - 12, top + row * i)], _RULE if i else _SOFT, 1,
              ()) for i in range(len(names))]
  return shapes, height, width


def to_svg(shapes, height, width=WIDTH) -> str:
  """The drawing as an SVG document."""
  parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
           f'width="{width}" height="{height}" font-family="Helvetica, Arial, sans-serif" '
           f'font-size="{_FONT}" fill="{_INK}">\n<rect width="100%" height="100%" fill="#fff"/>']
  for kind, *shape in shapes:
    if kind == 'text':
      (x, y), text, anchor = shape
      parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')
      continue
    points = ' '.join(f'{x:.1f},{y:.1f}' for x, y in shape[0])
    if kind == 'area':
      parts.append(f'<polygon points="{points}" fill="{shape[1]}" fill-opacity="0.15"/>')
    else:
      _, colour, thickness, dash = shape
      dashes = f' stroke-dasharray="{" ".join(map(str, dash))}"' if dash else ''
      parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" '
                   f'stroke-width="{thickness}" stroke-linejoin="round"{dashes}/>')
  return '\n'.join([*parts, '</svg>\n'])


def to_png(shapes, height, width=WIDTH) -> Image.Image:
  """The drawing as an image; letters that Pillow's own font lacks are boxes."""
  fine = _PIXELS * _FINER
  image = Image.new('RGB', (width * fine, height * fine), 'white')
  canvas, font = ImageDraw.Draw(image, 'RGBA'), ImageFont.load_default(_FONT * fine)
  for kind, *shape in shapes:
    if kind == 'text':
      (x, y), text, anchor = shape
      canvas.text((x * fine, y * fine), text, fill=_INK, font=font,
                  anchor={'start': 'ls', 'middle': 'ms', 'end': 'rs'}[anchor])
      continue
    points = [(x * fine, y * fine) for x, y in shape[0]]
    if kind == 'area':
      canvas.polygon(points, fill=f'{shape[1]}26')
    else:
      _, colour, thickness, dash = shape
      for piece in _dashed(points, [length * fine for length in dash]):
        canvas.line(piece, fill=colour, width=thickness * fine, joint='curve')
  return image.resize((width * _PIXELS, height * _PIXELS), Image.Resampling.LANCZOS)


def check_output(path):
  """Raises UserError where a drawing cannot have this name."""
  path = Path(path)
  if path.suffix.lower() not in ('.svg', '.png'):
    raise UserError(f'--output is {path}; a name that ends in .svg or .png is allowed')
  if not path.parent.is_dir():
    raise UserError(f'--output is {path}; a file in a folder that is there is allowed')


def write(path, shapes, height, width=WIDTH):
  """Writes a drawing in the format of the name's ending.

  Raises:
    UserError: it cannot be written.
  """
  path = Path(path)
  try:
    if path.suffix.lower() == '.svg':
      path.write_text(to_svg(shapes, height, width), encoding='utf-8')
    else:
      to_png(shapes, height, width).save(path, format='PNG')
  except OSError as error:
    raise UserError(f'--output is {path}; a file that can be written is allowed '
                    f'({error.strerror})') from error


def _axes(limit, title, x_label):
  """(shapes of the axes, x -> unit, accuracy -> unit) for x from 0 to the limit."""
  to_x = lambda x: _LEFT + np.asarray(x) / limit * (WIDTH - _LEFT - _RIGHT)
  to_y = lambda accuracy: _TOP + (1 - np.asarray(accuracy)) * _PLOT
  shapes = [('text', (12, 20), title, 'start')]
  for accuracy in np.arange(6) / 5:
    y = float(to_y(accuracy))
    colour = _SOFT if accuracy == 0 else _RULE
    shapes += [('line', [(_LEFT, y), (WIDTH - _RIGHT, y)], colour, 1, ()),
               ('text', (_LEFT - 8, y + 4), f'{100 * accuracy:.0f}%', 'end')]
  for value in _ticks(limit):
    x, y = float(to_x(value)), _TOP + _PLOT
    shapes += [('line', [(x, y), (x, y + 5)], _SOFT, 1, ()),
               ('text', (x, y + 20), f'{value:g}', 'middle')]
  shapes.append(('text', ((_LEFT + WIDTH - _RIGHT) / 2, _TOP + _PLOT + 42), x_label, 'middle'))
  return shapes, to_x, to_y


def _styles(count):
  """(colour, dash) of each curve: no two have the same colour."""
  if count <= len(_COLOURS):
    return [(colour, ()) for colour in _COLOURS[:count]]
  rgb = [colorsys.hls_to_rgb(i / count, (0.28, 0.38, 0.48)[i % 3], 0.7) for i in range(count)]
  return [('#' + ''.join(f'{round(255 * part):02x}' for part in parts), _DASHES[i % 3])
          for i, parts in enumerate(rgb)]


def _legend(names):
  """(shapes, height of the whole drawing): as many columns as the names leave room for."""
  top = _TOP + _PLOT + 70
  column = 44 + 0.56 * _FONT * max(map(len, names))
  num_columns = max(1, min(len(names), int((WIDTH - 2 * 12) // column)))
  num_rows = math.ceil(len(names) / num_columns)
  shapes = []
  for i, (name, (colour, dash)) in enumerate(zip(names, _styles(len(names)))):
    x, y = 12 + i // num_rows * column, top + i % num_rows * _LINE
    shapes += [('line', [(x, y - 4), (x + 26, y - 4)], colour, 3, dash),
               ('text', (x + 34, y), name, 'start')]
  return shapes, top + num_rows * _LINE


def _ticks(limit):
  """Round radii from 0 to the limit, at most nine."""
  power = 10. ** math.floor(math.log10(limit / 8))
  step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if limit <= 8 * factor * power)
  return np.arange(int(limit / step + 1e-9) + 1) * step


def _dashed(points, dash):
  """The pieces of a line that are drawn; dash is (on, off), or empty for a whole line."""
  if not dash:
    return [points]
  points = np.array(points, float)
  along = np.concatenate([[0.], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
  pieces = []
  for start in np.arange(0, along[-1], sum(dash)):
    end = min(start + dash[0], along[-1])
    inside = along[(along > start) & (along < end)]
    places = np.concatenate([[start], inside, [end]])
    pieces.append([(float(np.interp(place, along, points[:, 0])),
                    float(np.interp(place, along, points[:, 1]))) for place in places])
  return pieces


def _floats(points):
  return [(float(x), float(y)) for x, y in points]
