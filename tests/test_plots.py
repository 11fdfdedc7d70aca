"""Figures of arrays for notebooks: what they show, and that they show themselves."""

import io

import numpy as np
import pytest
from PIL import Image

from robust_jax.report import charts, gallery, plots
from robust_jax.types import Certificate

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(3, 8, 8, 1)).astype(np.float32)


def pictures(figure):
  """The arrays and titles that a figure shows."""
  return [(np.asarray(axes.images[0].get_array()), axes.get_title()) for axes in figure.axes]


@pytest.mark.parametrize('channels, number, columns', [(1, 3, 8), (3, 5, 2)])
def test_images_are_shown_pixel_by_pixel(channels, number, columns):
  images = RNG.uniform(size=(number, 8, 6, channels))
  figure = plots.images(images, map(str, range(number)), columns=columns)
  shown = pictures(figure)
  assert [title for _, title in shown] == list(map(str, range(number)))
  for image, (pixels, _) in zip(images, shown):
    np.testing.assert_allclose(pixels.reshape(image.shape), image, atol=1e-6)
  assert {axes.images[0].get_interpolation() for axes in figure.axes} == {'nearest'}
  with Image.open(io.BytesIO(figure._repr_png_())) as image:  # As IPython asks for it.
    assert image.format == 'PNG' and image.width > 200
  with pytest.raises(ValueError, match=f'titles must be {number}.* got 1'):
    plots.images(images, ['one'])


def test_adversarial_examples_are_shown_with_their_change():
  change = np.full_like(IMAGES, 8 / 255)
  figure = plots.adversarial(IMAGES, IMAGES + change, [0, 1, 1], before=[0, 1, 0], after=[1, -1, 0],
                             class_names=['n01440764', 'dog'])
  shown = pictures(figure)
  factor = gallery.magnification(change)
  np.testing.assert_allclose(shown[1][0], 0.5 + factor * 8 / 255, atol=1e-5)
  assert [title for _, title in shown[:6]] == [
      'image: tench', f'change ×{factor:g}, true: tench', 'attacked: dog',
      'image: dog', f'change ×{factor:g}, true: dog', 'attacked: abstains']
  plain = pictures(plots.adversarial(IMAGES, IMAGES + change, before=[3, 4, 5]))
  assert [title for _, title in plain[:3]] == ['image: 3', f'change ×{factor:g}', 'attacked']
  with pytest.raises(ValueError, match='attacked must have the shape'):
    plots.adversarial(IMAGES, IMAGES[:2])


def test_certified_accuracy_is_that_of_the_certificates():
  labels, radius = np.arange(4), np.array([0.1, 0.5, 0.5, 0.9])
  right = Certificate(labels, radius, None, None, None)
  wrong = right._replace(prediction=np.array([0, 1, -1, 0]))
  axes, = plots.certified({'right': right, 'wrong': wrong}, labels).axes
  for line, correct in zip(axes.get_lines(), ([1, 1, 1, 1], [1, 1, 0, 0])):
    x, y = line.get_data()
    np.testing.assert_allclose(y, [(correct * (radius >= r)).mean() for r in x])
  assert [text.get_text() for text in axes.get_legend().get_texts()] == ['right', 'wrong']
  assert charts.render(axes.figure, 'svg').startswith(b'<?xml')
