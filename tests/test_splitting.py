"""Deterministic l1 certificates against every pair of small images, splits against fractions."""

import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import certification
from robust_jax.certification import splitting


def cell(level, offset, template, num, steps):
  """The middle of a pixel's cell in [0, 1], in exact arithmetic."""
  begin = Fraction(2 * ((template + offset) % num) + 1, 2 * steps)
  width, x = Fraction(num, steps), Fraction(level, steps)
  low = begin + width * math.floor((x - begin) / width)
  return (max(low, Fraction(0)) + min(low + width, Fraction(1))) / 2


@pytest.mark.parametrize('num, steps', [(1, 4), (3, 8), (8, 8), (11, 8), (110, 255), (400, 255)])
def test_pixels_are_the_middle_of_their_cells(num, steps):
  levels = np.arange(steps + 1)
  template = np.random.default_rng(num).integers(0, num, steps + 1)
  offsets = np.unique(np.linspace(0, num - 1, 9).astype(int))
  images = np.broadcast_to((levels / steps).astype(np.float32), (len(offsets), steps + 1))
  found = splitting.split(images, offsets, template, num, steps)
  expected = [[cell(*pixel, num, steps) for pixel in zip(map(int, levels), [int(o)] * len(levels),
                                                         map(int, template))] for o in offsets]
  np.testing.assert_allclose(found, np.array(expected, float), atol=1e-7)


def all_counts(draw, steps, num, classes, share):
  """Votes of a random classifier on all images of two pixels: (levels [n, 2], counts)."""
  levels = np.stack(np.meshgrid(*[np.arange(steps + 1)] * 2), axis=-1).reshape(-1, 2)
  template = draw.integers(0, num, 2)
  seen = np.stack([splitting.split(jnp.asarray(levels / steps, jnp.float32),
                                   np.full(len(levels), offset), template, num, steps)
                   for offset in range(num)])
  views, which = np.unique(seen.reshape(-1, 2), axis=0, return_inverse=True)
  # One class has a share beforehand, so that certificates are not empty.
  answers = np.where(draw.uniform(size=len(views)) < share, draw.integers(classes),
                     draw.integers(0, classes, len(views)))
  votes = answers[which.reshape(num, -1)]
  return levels, np.stack([(votes == c).sum(0) for c in range(classes)], axis=-1)


def broken(levels, prediction, radius, steps):
  """(pairs of images of which one is within the other's radius and of another class, all such)."""
  distance = np.abs(levels[:, None] - levels[None]).sum(-1)
  inside = distance <= np.round(radius * steps)[:, None]
  return int((inside & (prediction[:, None] != prediction[None])).sum()), int(inside.sum())


@pytest.fixture(scope='module')
def small():
  """Votes of random classifiers; lambda from a half of a level to above 1."""
  draw = np.random.default_rng(0)
  return [(steps, *all_counts(draw, steps, num, classes, share))
          for steps, num, classes in [(4, 1, 2), (4, 3, 3), (5, 4, 2), (6, 9, 2), (7, 8, 3),
                                      (8, 5, 2), (8, 16, 3), (8, 20, 2)]
          for share in (0., 0.2, 0.4, 0.6, 0.8)]


def test_no_pair_of_images_breaks_a_certificate(small):
  pairs, positive = 0, 0
  for steps, levels, counts in small:
    found = splitting.certificate(counts, steps)
    wrong, inside = broken(levels, found.prediction, found.radius, steps)
    assert wrong == 0
    pairs, positive = pairs + inside, positive + int((found.radius > 0).sum())
  assert pairs > 10_000 and positive > 500


@pytest.mark.parametrize('unsound', ['half a level more', 'draws are won'])
def test_planted_mistakes_are_seen(small, unsound):
  wrong = 0
  for steps, levels, counts in small:
    found = splitting.certificate(counts, steps)
    ordered = np.sort(counts, axis=-1)
    gap = ordered[:, -1] - ordered[:, -2]
    radius = ((gap + 1) // 2 if unsound == 'half a level more' else gap // 2) / steps
    wrong += broken(levels, found.prediction, radius, steps)[0]
  assert wrong > 0


def test_certificates_of_images():
  """Beside votes counted one pass at a time; NaN votes for no class; batches change nothing."""
  draw = np.random.default_rng(3)
  images = (draw.integers(0, 256, (3, 2, 3, 1)) / 255).astype(np.float32)
  weights = draw.normal(size=(6, 4)).astype(np.float32)

  def logits_fn(x):
    logits = 9 * (x.reshape(len(x), 6) - 0.5) @ weights
    return jnp.where(x[:, 0, 0] > 0.7, jnp.nan, logits)

  sigma = 0.06
  num = math.floor(2 * math.sqrt(3) * sigma * 255)
  found = certification.certify_splitting(logits_fn, images, sigma=sigma, seed=5, batch_size=20)
  template = splitting.template(5, (2, 3, 1), num)
  for image, counts, prediction, radius in zip(images, found.counts, found.prediction,
                                               found.radius):
    votes = np.zeros(4, int)
    for offset in range(num):
      seen = [[[float(cell(round(float(v) * 255), offset, int(t), num, 255))
                for v, t in zip(row, t_row)] for row, t_row in zip(rows, t_rows)]
              for rows, t_rows in zip(image, template)]
      logits = np.asarray(logits_fn(np.array(seen, np.float32)[None]))[0]
      if not np.isnan(logits).any():
        votes[logits.argmax()] += 1
    np.testing.assert_array_equal(counts, votes)
    order = np.argsort(-votes, kind='stable')
    assert prediction == (order[0] if votes.any() else -1)
    gap = votes[order[0]] - votes[order[1]] - (order[1] < order[0])
    assert radius == gap // 2 / 255
  one = certification.certify_splitting(logits_fn, images[1:2], sigma=sigma, seed=5, batch_size=20)
  np.testing.assert_array_equal(one.counts, found.counts[1:2])
  nothing = certification.certify_splitting(lambda x: logits_fn(x) * jnp.nan, images, sigma=sigma)
  assert (nothing.prediction == -1).all() and (nothing.radius == 0).all()


@pytest.mark.parametrize('change, says', [
    (dict(sigma=0.), 'sigma must be a number in .0, inf., got 0'),
    (dict(sigma=math.nan), 'sigma .*nan'),
    (dict(sigma=1e-4), 'sigma must be at least 0.00113, got 0.0001'),
    (dict(batch_size=0), 'batch_size .*0'), (dict(batch_size=2.5), 'batch_size .* integer .*2.5'),
    (dict(seed=1.5), 'seed .* integer .*1.5'), (dict(sigma=[0.5]), 'sigma .* number .*0.5'),
    (dict(sigma=None), 'sigma .*None'),
    (dict(images=np.full((1, 2, 2, 1), 0.3001, np.float32)), 'pixels must be multiples of 1/255'),
    (dict(images=np.full((1, 2, 2, 1), 3, np.uint8)), 'images must be floating point')])
def test_wrong_arguments_are_named(change, says):
  arguments = dict(images=np.zeros((1, 2, 2, 1), np.float32), sigma=0.1) | change
  with pytest.raises(ValueError, match=says):
    certification.certify_splitting(lambda x: x.reshape(len(x), -1), arguments.pop('images'),
                                    **arguments)
