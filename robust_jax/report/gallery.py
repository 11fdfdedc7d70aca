"""Pictures: adversarial examples and what became of them; training images by their radius."""

import base64
import io
import math
from html import escape

import numpy as np
from PIL import Image


def gallery(arrays, class_names):
  """A card an example.

  Args:
    arrays: the arrays of gallery.npz: images, adversarial [k, h, w, c] in [0, 1]; index, labels,
      clean, predicted [k].
    class_names: the names of the classes; a class without a name shows its number.

  Returns:
    (HTML, magnification of the shown perturbations).
  """
  perturbations = arrays['adversarial'] - arrays['images']
  factor = magnification(perturbations)
  cards = []
  for i, perturbation in enumerate(perturbations):
    label, clean, predicted = (int(arrays[name][i]) for name in ('labels', 'clean', 'predicted'))
    name = _name(label, class_names)
    pictures = [
        (arrays['images'][i], f'image {int(arrays["index"][i])}, a {name}', 'image',
         _verdict(clean, label, class_names)),
        (0.5 + factor * perturbation, f'its perturbation, magnified {factor:g} times',
         f'change ×{factor:g}', f'<span class="class">true: {escape(name)}</span>'),
        (arrays['adversarial'][i], f'image {int(arrays["index"][i])} under attack', 'attacked',
         _verdict(predicted, label, class_names)),
    ]
    cells = ''.join(
        f'<figure><figcaption>{title}</figcaption>'
        f'<img src="{data_uri(pixels)}" alt="{escape(alt)}">{below}</figure>'
        for pixels, alt, title, below in pictures)
    cards.append(f'<div class="card">{cells}</div>')
  return f'<div class="gallery">{"".join(cards)}</div>', factor


def radii(arrays, class_names, show):
  """A card of the images with the smallest radii, and one of those with the largest.

  Args:
    arrays: the arrays of radii.npz: label, radius [num_train]; shown [2k], indices, those of the
      smallest radii first; images [2k, h, w, c] in [0, 1].
    class_names: as for `gallery`.
    show: radius -> its text.

  Returns:
    HTML; '' where no image is kept.
  """
  half = len(arrays['shown']) // 2
  cards = []
  for words, rows in (('Smallest radii', slice(half)), ('Largest radii', slice(half, None))):
    pictures = ''.join(
        f'<figure><img src="{data_uri(pixels)}" alt="training image {index}">'
        f'<span class="class">{escape(_name(int(arrays["label"][index]), class_names))}</span>'
        f'<small>{escape(show(arrays["radius"][index]))}</small></figure>'
        for index, pixels in zip(arrays['shown'][rows].tolist(), arrays['images'][rows]))
    cards.append(f'<h3>{words}</h3><div class="card many">{pictures}</div>')
  return ''.join(cards) if half else ''


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
  """Pixels [h, w, 1 or 3] in [0, 1] as a PNG in a data URI."""
  levels = np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
  image = Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)
  file = io.BytesIO()
  image.save(file, 'PNG')
  return 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode()


def _verdict(predicted, label, class_names):
  style, sign = ('right', '✓') if predicted == label else ('wrong', '✗')
  return f'<span class="class {style}">{sign} {escape(_name(predicted, class_names))}</span>'


def _name(index, class_names):
  if index < 0:
    return 'abstains'
  return str(class_names[index]) if index < len(class_names) else f'class {index}'
