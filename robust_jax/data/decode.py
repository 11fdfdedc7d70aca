"""One image: decoded by Pillow, and cut to size by the rules of torchvision's transforms."""

import io
import math
import struct

import numpy as np
from PIL import Image

from robust_jax.errors import UserError

# What Pillow raises on a file that is damaged or no image.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error,
          Image.DecompressionBombError)
# The short side is 256 where 224 pixels are kept.
RESIZE_RATIO = 256 / 224
CROP_AREAS = (0.08, 1.0)
CROP_RATIOS = (3 / 4, 4 / 3)
CROP_TRIES = 10


def broken(place, error):
  """The UserError that names the image at `place` where Pillow has raised `error`."""
  return UserError(f'{place}: no image that can be decoded ({" ".join(str(error).split())}); a '
                   'whole image is allowed')


def decode(encoded, channels):
  """The image of a file's bytes: 1 channel is grey, 3 are RGB, whatever the file has.

  Transparency is dropped, as Pillow's `convert` and torchvision do; of 16 bits the upper 8 are
  kept.

  Args:
    encoded: bytes of a JPEG, PNG or any other format that Pillow reads.
    channels: 1 or 3.

  Returns:
    PIL.Image of mode 'L' or 'RGB'.

  Raises:
    One of `BROKEN`: the bytes are no image, or pixels of more than 16 bits.
  """
  image = Image.open(io.BytesIO(encoded))
  image.load()
  if image.mode.startswith('I;16'):
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.mode in ('I', 'F'):
    raise ValueError(f'its pixels are of mode {image.mode!r}; 8 or 16 bits are allowed')
  if image.mode == 'P' and 'transparency' in image.info:
    image = image.convert('RGBA')  # Pillow warns where this step is left out.
  mode = 'L' if channels == 1 else 'RGB'
  return image if image.mode == mode else image.convert(mode)


def centre_crop(image, size):
  """The middle of an image whose short side is resized to size * 256 / 224.

  The same pixels as torchvision's Resize(256) and CenterCrop(224) of a PIL image.

  Args:
    image: PIL.Image.
    size: pixels, of both sides.

  Returns:
    [size, size, channel] uint8.
  """
  short = round(size * RESIZE_RATIO)
  width, height = image.size
  if width <= height:
    width, height = short, int(short * height / width)
  else:
    width, height = int(short * width / height), short
  image = image.resize((width, height), Image.Resampling.BILINEAR)
  left, top = round((width - size) / 2), round((height - size) / 2)
  return to_array(image.crop((left, top, left + size, top + size)))


def resized_crop(image, shape, draws, mirrored):
  """A random part of an image, resized: torchvision's RandomResizedCrop of a PIL image.

  Args:
    image: PIL.Image.
    shape: (height, width) of the result.
    draws: [CROP_TRIES, 4] uniform in [0, 1), see `crop_box`.
    mirrored: whether left and right are exchanged.

  Returns:
    [height, width, channel] uint8.
  """
  left, top, width, height = crop_box(*image.size, draws)
  # Cropped first: Pillow's resize(box=...) would mix in pixels from outside of the box.
  crop = image.crop((left, top, left + width, top + height))
  resized = to_array(crop.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
  return resized[:, ::-1] if mirrored else resized


def crop_box(width, height, draws):
  """The box of a random crop, by torchvision's rule.

  The area is uniform in 0.08..1 of the image's, the aspect ratio log-uniform in 3/4..4/3, the
  position uniform. The first of ten tries that fits into the image counts; if none does, the
  largest box in the middle whose aspect ratio is allowed.

  Args:
    width: of the image, in pixels.
    height: likewise.
    draws: [CROP_TRIES, 4] uniform in [0, 1): of area, aspect ratio, left and top of each try.

  Returns:
    (left, top, width, height) in pixels.
  """
  low, high = map(math.log, CROP_RATIOS)
  for area, ratio, left, top in draws.tolist():
    area = width * height * (CROP_AREAS[0] + (CROP_AREAS[1] - CROP_AREAS[0]) * area)
    ratio = math.exp(low + (high - low) * ratio)
    box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < box_width <= width and 0 < box_height <= height:
      return (int(left * (width - box_width + 1)), int(top * (height - box_height + 1)),
              box_width, box_height)
  box_width = min(width, max(round(height * CROP_RATIOS[1]), 1))
  box_height = min(height, max(round(width / CROP_RATIOS[0]), 1))
  return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def to_array(image):
  """[height, width, channel] uint8 of a PIL image of mode 'L' or 'RGB'."""
  values = np.asarray(image)
  return values[..., None] if values.ndim == 2 else values


def from_array(values):
  """The PIL image of [height, width, channel] uint8; 1 or 3 channels."""
  return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
