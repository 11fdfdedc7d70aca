"""Figures of arrays, for notebooks: images, adversarial examples, certified accuracy.

Each function takes plain arrays and gives a matplotlib figure, which a notebook shows and
`figure.savefig` writes. The launcher's page of a run is made of the same pieces.

>>> import numpy as np
>>> from robust_jax.report import plots
>>> figure = plots.images(np.zeros((3, 8, 8, 1)), ['a', 'b', 'c'])
>>> [axes.get_title() for axes in figure.axes]
['a', 'b', 'c']
"""

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from robust_jax.certification.log import Log
from robust_jax.report import charts, gallery

# Of a picture and its title, in inches.
_SIDE, _TITLE = 1.3, 0.28


def images(images, titles=(), *, columns=8) -> Figure:
  """Images side by side, every pixel a square.

  Args:
    images: [number, height, width, 1 or 3] in [0, 1].
    titles: [number] texts above them; () for none.
    columns: pictures in a row, at most.
  """
  images = np.asarray(images)
  titles = list(titles) or [''] * len(images)
  if len(titles) != len(images):
    raise ValueError(f'titles must be {len(images)}, one for each image, got {len(titles)}')
  columns = max(min(columns, len(images)), 1)
  rows = [list(zip(images, titles))[i:i + columns] for i in range(0, len(images), columns)]
  return _grid(rows, columns)


def adversarial(images, attacked, labels=None, *, before=None, after=None,
                class_names=()) -> Figure:
  """Each image, the change that an attack made, and the image under attack, in a row.

  The change is drawn around mid-grey, magnified by one factor for all: grey is no change.

  Args:
    images: [number, height, width, 1 or 3] in [0, 1].
    attacked: of the same shape, as `AttackResult.images`.
    labels: [number] int, the true classes, or None.
    before: [number] int, the classes predicted of `images`, or None; -1: it abstains.
    after: [number] int, those of `attacked`, or None.
    class_names: the names of the classes, as `Dataset.class_names`; ImageNet's synsets are shown
      in words, and a class without a name by its number.
  """
  images, attacked = np.asarray(images), np.asarray(attacked)
  if images.shape != attacked.shape:
    raise ValueError(f'attacked must have the shape {images.shape} of images, got '
                     f'{attacked.shape}')
  change = attacked - images
  factor = gallery.magnification(change)

  def titles(word, classes):
    named = '' if classes is None else ': {}'
    return [word + named.format(gallery.class_name(int(k), class_names or range(int(k) + 1)))
            for k in (np.zeros(len(images)) if classes is None else classes)]

  columns = (zip(images, titles('image', before)),
             zip(0.5 + factor * change, titles(f'change ×{factor:g}, true', labels)
                 if labels is not None else titles(f'change ×{factor:g}', None)),
             zip(attacked, titles('attacked', after)))
  return _grid(list(zip(*columns)), 3, side=1.9)


def certified(certificates, labels) -> Figure:
  """Certified accuracy against the radius, one curve for each of several classifiers.

  Args:
    certificates: {name: `types.Certificate`} of the same images, as `certification.certify` gives.
    labels: [number] int, the true classes.
  """
  labels = np.asarray(labels)
  logs = [Log(np.arange(len(labels)), labels, np.asarray(each.prediction),
              np.asarray(each.radius, np.float64), np.asarray(each.prediction) == labels,
              np.zeros(len(labels)), {}, []) for each in certificates.values()]
  chart = charts.certified_chart(logs, list(certificates))
  return _shown(charts.draw(chart._replace(size=(520, 340))))


def _grid(rows, columns, *, side=_SIDE):
  """The figure of rows of (image, title)."""
  heights = [side + _TITLE] * len(rows)
  with matplotlib.style.context(['default', charts.STYLE]):
    figure = Figure(figsize=(columns * (side + 0.1), sum(heights)), dpi=96)
    grid = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={
        'left': 0.01, 'right': 0.99, 'bottom': 0.01, 'hspace': 1.2 * _TITLE / side, 'wspace': 0.06,
        'top': 1 - _TITLE / sum(heights)})
    for places, row in zip(grid, rows):
      for axes in places[len(row):]:
        axes.remove()
      for axes, (image, title) in zip(places, row):
        # One channel is grey; matplotlib takes [height, width] for that.
        pixels = np.clip(image[..., 0] if image.shape[-1] == 1 else image, 0, 1)
        axes.imshow(pixels, cmap='gray', vmin=0, vmax=1, interpolation='nearest')
        axes.set_title(title, size=9, pad=3)
        axes.axis('off')
  return _shown(figure)


def _shown(figure):
  """The figure as a notebook shows it, whether or not pyplot was imported there."""
  figure._repr_png_ = lambda: charts.render(figure, 'png', dpi=100)
  return figure
