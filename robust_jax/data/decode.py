"""Decodes one image with Pillow, and cuts it to size as torchvision's transforms do."""

import io
import math
import struct

import numpy as np
from PIL import Image

from robust_jax.errors import UserError

# What Pillow raises on a file that is damaged or no image.
ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error,
          Image.DecompressionBombError)
# The short side is 256 where 224 pixels are kept.
RESIZE_RATIO = 256 / 224
CROP_AREAS = (0.08, 1.0)
CROP_RATIOS = (3 / 4, 4 / 3)
CROP_TRIES = 10


def broken(place, error):
  """The UserError for the image at `place`, on which Pillow has raised `error`."""
  return UserError(f'{place}: the image cannot be decoded ({" ".join(str(error).split())})')


def decode(encoded, channels):
  """The image in the bytes of a file, converted to grey (1 channel) or RGB (3).

  Transparency is dropped, as in Pillow's `convert` and torchvision; of 16 bits the upper 8 are
  kept.

  Args:
    encoded: bytes of a JPEG, PNG or any other format that Pillow reads.
    channels: 1 or 3.

  Returns:
    PIL.Image of mode 'L' or 'RGB'.

  Raises:
    One of `ERRORS`: the bytes are no image, or have pixels of more than 16 bits.
  """
  image = Image.open(io.BytesIO(encoded))
  image.load()
  if image.mode.startswith('I;16'):
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.mode in ('I', 'F'):
    raise ValueError(f'pixels must have 8 or 16 bits, got mode {image.mode!r}')
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
  """A random part of an image, resized as torchvision's RandomResizedCrop does.

  Args:
    image: PIL.Image.
    shape: (height, width) of the result.
    draws: [CROP_TRIES, 4] uniform in [0, 1), see `crop_box`.
    mirrored: whether the result is flipped left to right.

  Returns:
    [height, width, channel] uint8.
  """
  left, top, width, height = crop_box(*image.size, draws)
  # Crop first: Pillow's resize(box=...) would mix in pixels from outside of the box.
  crop = image.crop((left, top, left + width, top + height))
  resized = crop.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
  # By Pillow: NumPy takes ten times as long to copy what goes backwards.
  return to_array(resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else resized)


def crop_box(width, height, draws):
  """The box of a random crop, by torchvision's rule.

  The area is uniform in 0.08..1 of the image's, the aspect ratio log-uniform in 3/4..4/3, the
  position uniform. The box is the first of ten tries that fits into the image; if none fits, the
  largest box in the middle with an aspect ratio in 3/4..4/3.

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
  """A PIL image of mode 'L' or 'RGB' as [height, width, channel] uint8."""
  values = np.asarray(image)
  return values[..., None] if values.ndim == 2 else values


def from_array(values):
  """[height, width, channel] uint8 of 1 or 3 channels as a PIL image."""
  return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
