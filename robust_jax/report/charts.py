"""Charts by matplotlib. One description serves the page, as inline SVG, and a paper, as a file."""

import io
import re
import textwrap
from typing import NamedTuple
from xml.etree import ElementTree

import matplotlib.style
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure
from scipy import special

from robust_jax import analysis

# {name: (by day, by night)}: variables of the style sheet, --c0 for one; files have those of day.
PALETTE = {
    'paper': ('#fbfbf9', '#15181b'), 'card': ('#ffffff', '#1d2125'),
    'right': ('#17793f', '#5cc98a'), 'wrong': ('#bd2c3c', '#f0808c'),
    'note': ('#fff6dc', '#2d2918'), 'note-rule': ('#d9b13b', '#a88a30'),
    'ink': ('#1c2024', '#e7e9ea'), 'soft': ('#5c646d', '#9ba4ad'), 'rule': ('#e0e2e0', '#343a40'),
    'c0': ('#1f62ad', '#6aa9ec'), 'c1': ('#c4561d', '#ee8f5c'), 'c2': ('#13806f', '#4fc0ac'),
    'c3': ('#8548c2', '#bb97f0'), 'c4': ('#b02a6f', '#f08bbd'), 'c5': ('#86690a', '#d6b948'),
    'c6': ('#55606b', '#a9b4be'), 'c7': ('#4c8a1e', '#92cf63')}
# What a colour means on the page of a run.
CERTIFIED, ATTACK, TEST, TRAIN, VALIDATION = 'c0', 'c1', 'c2', 'c3', 'c5'
FORMATS = ('svg', 'pdf', 'png')
MAX_POINTS = 400
_INK, _SOFT, _RULE = (PALETTE[name][0] for name in ('ink', 'soft', 'rule'))
_DASHES = ('-', (0, (4, 2.5)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
# Fonts as text; the same bytes from the same figures; a $ in a name is a $.
STYLE = {'svg.fonttype': 'none', 'svg.hashsalt': 'robust_jax', 'pdf.fonttype': 42,
          'text.parse_math': False, 'font.size': 12, 'text.color': _INK, 'axes.labelcolor': _SOFT,
          'xtick.color': _SOFT, 'ytick.color': _SOFT, 'axes.edgecolor': _SOFT, 'grid.color': _RULE,
          'axes.formatter.use_mathtext': False, 'axes.labelpad': 7}
# Space around the axes in points.
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 44


class Line(NamedTuple):
  """One line of a chart.

  Attributes:
    name: its name in the legend; '' for none.
    style: a name of the palette, and dash1, dash2 or dash3 for a dashed line; see `style`.
    x: [num_points] ascending.
    y: [num_points].
    interval: None, or (low, high), [num_points] each: a band, or whiskers at marks.
    steps: each y holds back to the previous x, as a non-increasing step function needs it.
    marks: a dot at every point, with its figures as a tooltip.
    thin: a pale line behind others.
    joined: whether there is a line; False: marks alone.
    band: whether there is the band of the interval alone.
  """

  name: str
  style: str
  x: np.ndarray
  y: np.ndarray
  interval: tuple[np.ndarray, np.ndarray] | None = None
  steps: bool = False
  marks: bool = False
  thin: bool = False
  joined: bool = True
  band: bool = False

  @property
  def finite(self):
    """The line without points that are not finite."""
    x, y = np.asarray(self.x, float), np.asarray(self.y, float)
    keep = np.isfinite(x) & np.isfinite(y)
    interval = self.interval and tuple(np.asarray(end)[keep] for end in self.interval)
    return self._replace(x=x[keep], y=y[keep], interval=interval)


class Chart(NamedTuple):
  """A chart of lines.

  Attributes:
    name: of its file, and of its parts on a page.
    title: what the y axis shows.
    x_label: what the x axis shows.
    lines: list of `Line`, first to last drawn.
    y_limits: (low, high), or None for the range of the data.
    x_from: where the x axis begins.
    limits: {text: x}, thin lines from top to bottom that say why a curve ends.
    percent: whether y is a fraction to be shown in per cent.
    counts: whether y is a number of things.
    size: (width, height) of the axes and their labels in points; text has 12.
    in_legend: whether the page has a legend above this chart.
  """

  name: str
  title: str
  x_label: str
  lines: list[Line]
  y_limits: tuple[float, float] | None = None
  x_from: float = 0.
  limits: dict[str, float] = {}
  percent: bool = False
  counts: bool = False
  size: tuple[int, int] = (400, 250)
  in_legend: bool = True

  @property
  def drawn(self):
    """The lines that have points."""
    return [line for line in (line.finite for line in self.lines) if len(line.x)]

  @property
  def logarithmic(self):
    """Whether y spans so much, and not in its last moments alone, that its axis is logarithmic."""
    y = np.concatenate([line.y for line in self.drawn])
    return (self.y_limits is None and not self.percent
            and bool(y.min() > 0 and 50 * np.quantile(y, 0.15) < y.max()))

  @property
  def floor(self):
    """Where a logarithmic axis begins: what few values are below it is drawn there."""
    y = np.concatenate([line.y for line in self.drawn])
    return 0.7 * float(np.quantile(y, 0.02))

  @property
  def legend(self):
    """[(name, style)] of the lines that have a name."""
    return [(line.name, line.style + ' thin' * line.thin + ' band' * line.band)
            for line in self.drawn if line.name] if self.in_legend else []


def style(number: int) -> str:
  """The style of the number-th of several lines: eight colours, then the same ones dashed.

  From the 33rd on they come again.
  """
  dash = number // 8 % len(_DASHES)
  return f'c{number % 8}' + (f' dash{dash}' if dash else '')


def draw(chart: Chart, *, alone=True) -> Figure:
  """The figure of a chart that has points.

  Args:
    chart: the description.
    alone: with title and legend, as a file needs them; a page has them in its HTML.
  """
  with matplotlib.style.context(['default', STYLE]):
    width, height = chart.size
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    axes = figure.add_axes((_LEFT / width, _BOTTOM / height, 1 - (_LEFT + _RIGHT) / width,
                            1 - (_TOP + _BOTTOM) / height))
    lines = [line._replace(y=np.maximum(line.y, chart.floor)) if chart.logarithmic else line
             for line in chart.drawn]
    handles = [_draw_line(axes, line, f'line-{i}') for i, line in enumerate(lines)]
    _scale(axes, chart)
    for text, x in chart.limits.items():
      axes.axvline(x, color=_SOFT, linewidth=0.8)
      # Beyond the limit, where no certified curve is.
      axes.annotate(text, (x, 1), (4, 0), xycoords=('data', 'axes fraction'),
                    textcoords='offset points', rotation=90, rotation_mode='anchor', ha='right',
                    va='top', color=_SOFT, size=11,
                    bbox={'facecolor': PALETTE['card'][0], 'linewidth': 0, 'alpha': 0.85,
                          'pad': 0.5})
    axes.set_xlabel(chart.x_label)
    axes.spines[['top', 'left', 'right']].set_visible(False)
    axes.grid(axis='y')
    axes.set_axisbelow(True)
    axes.tick_params(axis='y', which='both', length=0, pad=7)
    axes.patch.set_visible(False)
    figure.patch.set_visible(alone)
    if alone:
      axes.set_title(chart.title, loc='left', pad=16)
      named = [(handle, line.name) for handle, line in zip(handles, chart.drawn) if line.name]
      _legend(axes, named, width, height)
    return figure


def draw_table(title, columns, rows, shades) -> Figure:
  """A table as a picture, narrow enough to be read on a page: intervals stand below their figures.

  Args:
    title: a line above it.
    columns: names of the columns; the first is that of the rows.
    rows: [num_rows] of texts, None for an empty cell.
    shades: {number of a column: its figures [num_rows], NaN where there is none}: the larger a
      figure among those of its column, the darker is its cell.
  """
  heads = [textwrap.wrap(name, 9 if j else 40) for j, name in enumerate(columns)]
  parts = [[(cell or '').partition(' ± ') for cell in row] for row in rows]
  widths = [16 + 7.3 * max(len(text) for text in [*heads[j], *(row[j][0] for row in parts)])
            for j in range(len(columns))]
  has_interval = any(interval for row in parts for _, _, interval in row)
  widths = [max(width, 22 + 5.6 * max(len(row[j][2]) for row in parts))
            for j, width in enumerate(widths)]
  lines = textwrap.wrap(title, int(sum(widths) / 7))
  ends, row = np.cumsum(widths), 33 if has_interval else 21
  top = (18 * (len(lines) + max(map(len, heads))) + 12) / row
  with matplotlib.style.context(['default', STYLE]):
    figure = Figure(figsize=(ends[-1] / 72, row * (len(rows) + top) / 72), dpi=72)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, ends[-1]), ylim=(len(rows), -top))
    axes.axis('off')
    axes.text(6, -top, '\n'.join(lines), va='top')
    for i in range(len(rows)):
      axes.axhline(i, color=_RULE if i else _SOFT, linewidth=1)
    for j, figures in shades.items():
      known = np.isfinite(figures)
      low, high = np.min(figures, where=known, initial=np.inf), np.max(
          figures, where=known, initial=-np.inf)
      for i in np.flatnonzero(known & (low < high)):
        axes.fill_between([ends[j - 1] + 2, ends[j] - 2], i + 0.05, i + 0.95, linewidth=0,
                          color=PALETTE['c0'][0],
                          alpha=0.3 * (figures[i] - low) / (high - low))
    for j, head in enumerate(heads):
      x, align = (ends[j] - 8, 'right') if j else (6, 'left')
      axes.text(x, -6 / row, '\n'.join(head), ha=align, va='bottom', color=_SOFT)
      for i, cells in enumerate(parts):
        text, _, interval = cells[j]
        axes.text(x, i + (0.35 if interval else 0.5), text, ha=align, va='center',
                  weight='bold' if isinstance(rows[i][j], analysis.Best) else 'normal')
        if interval:
          axes.text(x, i + 0.74, f'± {interval}', ha='right', va='center', size=9.5, color=_SOFT)
    return figure


def render(figure: Figure, kind: str, dpi=200) -> bytes:
  """The file of a figure: svg, pdf or png; the same bytes at any time."""
  undated = {'svg': {'Date': None, 'Creator': None}, 'png': {'Software': None},
             'pdf': {'CreationDate': None, 'Creator': None, 'Producer': None}}[kind]
  file = io.BytesIO()
  with matplotlib.style.context(['default', STYLE]):
    figure.savefig(file, format=kind, dpi=dpi, bbox_inches='tight', metadata=undated)
  return file.getvalue()


def inline_svg(chart: Chart) -> str:
  """The chart as an element of a page, whose style sheet has its colours and fonts."""
  file = io.BytesIO()
  with matplotlib.style.context(['default', STYLE]):
    draw(chart, alone=False).savefig(file, format='svg')
  root = ElementTree.fromstring(file.getvalue())
  names = {light: f'var(--{name})' for name, (light, _) in PALETTE.items()}
  for parent in list(root.iter()):
    for child in list(parent):
      if child.tag.endswith(('}metadata', '}style', '}clipPath')):
        parent.remove(child)
  used = set(re.findall(rb'"#(\w+)"', file.getvalue()))
  for element in root.iter():
    element.tag = element.tag.rpartition('}')[2]
    attributes = {key.rpartition('}')[2]: value for key, value in element.attrib.items()}
    if attributes.get('id', '').startswith('line-'):
      _add_tooltips(element, chart, chart.drawn[int(attributes['id'][5:])])
    attributes.pop('clip-path', None)  # Nothing is drawn outside.
    if attributes.get('id', '').encode() not in used:
      attributes.pop('id', None)
    if 'style' in attributes:  # Fonts are the page's.
      attributes['style'] = re.sub(r'#[0-9a-f]{6}', lambda found: names[found.group()], re.sub(
          r'font(-\w+)?: [^;]*;? ?', '', attributes['style']))
    for name in ('d', 'x', 'y'):
      if name in attributes:  # A hundredth of a point is enough.
        attributes[name] = re.sub(r'(\.\d\d)\d+| (?= )', r'\1', attributes[name].strip())
    for name, mark in (('id', ''), ('href', '#')):  # Unique on the page.
      if name in attributes:
        attributes[name] = f'{mark}{chart.name}-{attributes[name].removeprefix("#")}'
    if 'rotate(-0' in attributes.get('transform', ''):
      del attributes['transform']
    if element.tag not in ('text', 'title'):
      element.text = None
    element.tail, element.attrib = None, attributes
  root.attrib = {'viewBox': root.attrib['viewBox'], 'role': 'img',
                 'aria-label': f'{chart.title} against {chart.x_label}',
                 'class': 'wide' if chart.size[0] > 400 else 'small'}
  return ElementTree.tostring(root, encoding='unicode', short_empty_elements=False)


def average(x, y, count=MAX_POINTS):
  """Thins a long line: means over consecutive groups of equal size, `count` at most."""
  if len(x) <= count:
    return np.asarray(x, float), np.asarray(y, float)
  return tuple(np.array([part.mean() for part in np.array_split(np.asarray(values, float), count)])
               for values in (x, y))


def certified_curves(logs, most=MAX_POINTS):
  """[(radii, certified accuracies)] of logs, to be drawn as steps, on radii that they share.

  Each goes from 0 to a little beyond the largest radius of all, or to the end of its grid. With
  more than `most` radii these are equidistant; the steps are never above the function.
  """
  grids = [grid for grid in map(analysis.decided_radii, logs) if grid is not None]
  radii = np.unique(np.concatenate([[0.], *grids, *(
      log.radius[log.correct] for log in logs if analysis.decided_radii(log) is None)]))
  if len(radii) > most:
    radii = np.unique(np.concatenate([np.linspace(0, radii[-1], most), *grids]))
  radii = np.append(radii, radii[-1] * (1 + 1e-6))
  curves = [analysis.certified_accuracy(log, radii) for log in logs]
  return [(radii[~np.isnan(y)], y[~np.isnan(y)]) for y in curves]


def not_broken_curve(adversarial, most=MAX_POINTS):
  """(radii, shares of the images without an adversarial example within them), drawn as steps.

  With more than `most` radii some are left out; the steps are never below the function.

  Args:
    adversarial: [num_images] radii of adversarial examples, inf where there is none.
    most: the number of radii.
  """
  radii = np.unique(adversarial[np.isfinite(adversarial) & (adversarial > 0)])
  if len(radii) > most:
    radii = radii[np.linspace(0, len(radii) - 1, most).round().astype(int)]
  radii = np.concatenate([[0.], radii, radii[-1:] * (1 + 1e-6)])
  # Each holds back to the radius before it.
  before = np.concatenate([[0.], radii[:-1]])
  return radii, np.array([np.mean(adversarial > radius) for radius in before])


def _draw_line(axes, line, name):
  colour, _, dash = line.style.partition(' dash')
  colour = PALETTE[colour][0]
  if line.band:
    return axes.fill_between(line.x, *line.interval, color=colour, alpha=0.18, linewidth=0,
                             clip_on=False)
  if line.interval is not None and line.marks:
    axes.vlines(line.x, *line.interval, color=colour, linewidth=1.2, alpha=0.65, clip_on=False)
  elif line.interval is not None:
    axes.fill_between(line.x, *line.interval, step='pre' if line.steps else None, color=colour,
                      alpha=0.18, linewidth=0, clip_on=False)
  handle, = axes.plot(
      line.x, line.y, color=colour, linestyle=_DASHES[int(dash or 0)] if line.joined else '',
      gid=name, clip_on=False,
      drawstyle='steps-pre' if line.steps else 'default', markersize=6 if line.joined else 4,
      marker='o' if line.marks or len(line.x) == 1 else '', solid_joinstyle='round',
      markeredgewidth=0, **({'linewidth': 1, 'alpha': 0.4} if line.thin else {'linewidth': 2}))
  return handle


def _scale(axes, chart):
  y = np.concatenate([line.y for line in chart.drawn])
  axes.margins(x=0.03)
  axes.set_xlim(left=chart.x_from)
  if chart.limits and max(chart.limits.values()) > chart.x_from:  # Room for the text beside it.
    width = axes.get_xlim()[1] - chart.x_from
    axes.set_xlim(right=max(axes.get_xlim()[1], max(chart.limits.values()) + 0.06 * width))
  axes.xaxis.set_major_locator(ticker.MaxNLocator(7, steps=[1, 2, 5, 10]))
  axes.xaxis.set_major_formatter('{x:g}')
  if chart.logarithmic:
    axes.set_yscale('log')
    axes.set_ylim(bottom=chart.floor)
    axes.minorticks_off()
  else:
    axes.yaxis.set_major_locator(ticker.MaxNLocator(
        5, steps=[1, 2, 2.5, 5, 10], integer=chart.counts))
    axes.set_ylim(bottom=min(y.min(), 0.))
  if chart.percent and y.max() <= 1:  # From zero, unless differences would not show.
    axes.set_ylim(np.floor(10 * y.min() - 0.1) / 10 if y.min() > 0.7 else 0., 1.)
  if chart.y_limits:
    axes.set_ylim(chart.y_limits)
  axes.yaxis.set_major_formatter(ticker.PercentFormatter(1) if chart.percent else '{x:g}')


def _legend(axes, named, width, height):
  """Below the axes, in as many columns as the names leave room for."""
  if not named:
    return
  # matplotlib leaves out what begins with an underscore.
  names = [f' {name}' if name.startswith('_') else name for _, name in named]
  columns = max(1, min(len(names), int(width // (44 + 7 * max(map(len, names))))))
  axes.legend([handle for handle, _ in named], names, loc='upper left', frameon=False,
              bbox_to_anchor=(-0.02, -_BOTTOM / (height - _TOP - _BOTTOM)), ncols=columns,
              borderaxespad=0.2)


def _add_tooltips(group, chart, line):
  show = (lambda y: f'{100 * y:.1f}%') if chart.percent else lambda y: f'{y:.4g}'
  marks = [element for element in group.iter() if element.tag.endswith('use')]
  for mark, x, y in zip(marks, line.x, line.y):
    title = ElementTree.SubElement(mark, 'title')
    title.text = f'{line.name}, {chart.x_label} {x:.4g}: {show(y)}'


def probability_curves(logs, sigmas, most=MAX_POINTS):
  """[(p, shares of the images with p_A >= p)] of logs, to be drawn as steps, on p that they share.

  The p are those of equidistant radii / sigma; the steps are never above the function.

  Args:
    logs: [num_logs].
    sigmas: [num_logs], the noise of each, pixel units.
    most: the number of p.
  """
  largest = max(log.radius.max(initial=0.) / sigma for log, sigma in zip(logs, sigmas))
  p = special.ndtr(np.linspace(0, largest, most))
  p = np.append(p, np.nextafter(p[-1], 2))
  return [(p, (analysis.certified_probability(log, sigma) >= p[:, None]).mean(axis=-1))
          for log, sigma in zip(logs, sigmas)]


def certified_chart(logs, names, intervals=False, sigmas=None) -> Chart:
  """The certified accuracy of several logs, each in a line of its own.

  Args:
    logs: [num_logs], none of them empty.
    names: [num_logs], for the legend.
    intervals: whether bands show the 95% intervals of the accuracy, at each radius by itself.
    sigmas: None for curves against the radius; against p_A, the noise of each log.
  """
  curves = certified_curves(logs) if sigmas is None else probability_curves(logs, sigmas)
  lines = [
      Line(name, style(i), *curve, analysis.accuracy_interval(curve[1], len(log.idx))
           if intervals else None, steps=True)
      for i, (log, name, curve) in enumerate(zip(logs, names, curves))]
  if sigmas is not None:
    return probability_chart(lines, size=(720, 470))
  return Chart('certified', 'Certified accuracy', 'ℓ₂ radius', lines, (0, 1), percent=True,
               size=(720, 470), limits=draw_limits(logs))


def probability_chart(lines, **more) -> Chart:
  """The empirical distribution of p_A: the shares of images with at least a p_A."""
  return Chart('probability', 'Images with at least this p_A',
               'p_A, lower bound of the probability of the label under noise', lines, (0, 1),
               x_from=0.5, percent=True, **more)


def draw_limits(logs, most=3) -> dict[str, float]:
  """`Chart.limits`: the radius that n draws can give at most, where a log's images have reached it.

  None of them where there are more than `most`.
  """
  found = {}
  for log in logs:
    radius = analysis.largest_radius(log)
    if radius is not None and log.radius.max(initial=0.) > 0.999 * radius:
      found[radius] = f'limit of n = {log.settings["n"]:,}'
  # Of one n with several sigmas the texts would be the same.
  texts = {radius: text + (f' ({radius:.2f})' if [*found.values()].count(text) > 1 else '')
           for radius, text in found.items()}
  return {text: radius for radius, text in texts.items()} if len(found) <= most else {}


def histogram(name, title, x_label, values, style, **more) -> Chart:
  """How many of `values` >= 0 are in each of 24 equal parts from 0 to the largest."""
  counts, edges = np.histogram(values, bins=24, range=(0, np.max(values) or 1))
  outline = np.concatenate([[0], counts, [0]])
  return Chart(name, title, x_label, [
      Line('', style, np.append(edges, edges[-1]), outline, (np.zeros(len(outline)), outline),
           steps=True)], counts=True, **more)
