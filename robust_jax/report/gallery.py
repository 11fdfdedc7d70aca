"""Pictures: adversarial examples and what became of them; training images by their radius."""

import base64
import io
import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from robust_jax.data import imagenet

# Smaller images are enlarged by a whole factor to about this height, so that no viewer blurs them.
_HEIGHT = 160


class Picture(NamedTuple):
  """A picture of a card: a title above it, a class's name below it, and a note.

  `uri` has the PNG itself, `alt` says what it shows; `verdict` is right, wrong or ''.
  """

  uri: str
  alt: str
  name: str
  title: str = ''
  verdict: str = ''
  note: str = ''


def adversarial(arrays, class_names) -> tuple[list[list[Picture]], float]:
  """For each example the image, its perturbation and the image under attack.

  Args:
    arrays: the arrays of gallery.npz: images, adversarial [k, h, w, c] in [0, 1]; index, labels,
      clean, predicted [k]; in younger ones clean_confidence and confidence [k], the probabilities,
      or shares of the votes, of the predicted classes.
    class_names: the names of the classes; a class without a name shows its number.

  Returns:
    (pictures of each example, magnification of the shown perturbations).
  """
  perturbations = arrays['adversarial'] - arrays['images']
  factor = magnification(perturbations)

  def verdict(predicted, label, confidence):
    sign, verdict = ('✓', 'right') if predicted == label else ('✗', 'wrong')
    note = '' if confidence is None else f'{100 * confidence:.0f}%'
    return {'name': f'{sign} {class_name(predicted, class_names)}', 'verdict': verdict,
            'note': note}

  cards = []
  for i, perturbation in enumerate(perturbations):
    index, label, clean, predicted = (
        int(arrays[name][i]) for name in ('index', 'labels', 'clean', 'predicted'))
    before, after = (float(arrays[name][i]) if name in arrays else None
                     for name in ('clean_confidence', 'confidence'))
    name = class_name(label, class_names)
    cards.append([
        Picture(data_uri(arrays['images'][i]), f'image {index}, a {name}', title='image',
                **verdict(clean, label, before)),
        Picture(data_uri(0.5 + factor * perturbation),
                f'its perturbation, magnified {factor:g} times', f'true: {name}',
                f'change ×{factor:g}'),
        Picture(data_uri(arrays['adversarial'][i]), f'image {index} under attack',
                title='attacked', **verdict(predicted, label, after))])
  return cards, factor


def by_radius(arrays, class_names, show) -> list[tuple[str, list[Picture]]]:
  """The training images with the smallest radii, and those with the largest, each after a title.

  Args:
    arrays: the arrays of radii.npz: label, radius [num_train]; shown [2k], indices, those of the
      smallest radii first; images [2k, h, w, c] in [0, 1].
    class_names: as for `adversarial`.
    show: radius -> its text.
  """
  pictures = [
      Picture(data_uri(pixels), f'training image {index}',
              class_name(int(arrays['label'][index]), class_names),
              note=show(arrays['radius'][index]))
      for index, pixels in zip(arrays['shown'].tolist(), arrays['images'])]
  half = len(pictures) // 2
  return [('Smallest radii', pictures[:half]), ('Largest radii', pictures[half:])] if half else []


def magnification(perturbations):
  """The largest round factor that keeps 0.5 + factor * perturbation within [0, 1]; 1 at least."""
  largest = float(np.abs(perturbations).max(initial=0.0))
  if largest == 0:
    return 1.0
  # A hair below the step: float32 subtraction makes 8/255 a little more than 8/255.
  exact = 0.5 / largest * (1 + 1e-4)
  power = 10.0 ** (math.floor(math.log10(exact)) - 1)
  return max(1.0, float(f'{math.floor(exact / power) * power:.2g}'))


def data_uri(pixels):
  """Pixels [h, w, 1 or 3] in [0, 1] as a PNG in a data URI; each a square where they are few."""
  levels = np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
  factor = max(_HEIGHT // len(levels), 1)
  levels = levels.repeat(factor, axis=0).repeat(factor, axis=1)
  file = io.BytesIO()
  Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels).save(file, 'PNG')
  return 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode()


def read(path):
  """The pixels [h, w, 1 or 3] of a PNG, in [0, 1]."""
  with Image.open(path) as image:
    return np.atleast_3d(np.asarray(image)).astype(np.float32) / 255


def class_name(index, class_names):
  """The name of a class, ImageNet's in words; of -1, that the classifier abstains."""
  if index < 0:
    return 'abstains'
  name = str(class_names[index]) if index < len(class_names) else f'class {index}'
  return imagenet.names().get(name, name)
