"""One file of an image, with pixels as those of a dataset's."""

import warnings

import numpy as np
from PIL import Image, ImageOps

from robust_jax.data import decode
from robust_jax.errors import UserError

# No photograph is larger: files that are, are not read.
_MOST_BYTES, _MOST_PIXELS = 2**28, 10**8
# The whole of an image is enlarged where its short side has too few pixels.
_MOST_ELONGATED = 50


def read(path, image_shape, *, pad=0, field='the image file'):
  """The pixels of a file.

  As the images of a dataset are cut: of another size, the short side is resized to 256/224 of
  what is kept, its middle. Turned as the camera says (EXIF).

  Args:
    path: a file of any format that Pillow reads; of several images in it, the first.
    image_shape: (height, width, channel) of the result; where height and width differ, the largest
      middle of these proportions is resized to them.
    pad: how many of its pixels, on every side, are a black border.
    field: what errors call the file.

  Returns:
    [height, width, channel] uint8.

  Raises:
    UserError: the file is not there, is no image, is larger than 256 MiB or 100 megapixels, or has
      one side more than 50 times as long as the other.
  """
  height, width, channels = image_shape
  size = (width - 2 * pad, height - 2 * pad)
  try:
    if not path.is_file():
      raise OSError('no such file')
    if path.stat().st_size > _MOST_BYTES:
      raise OSError(f'it is larger than {_MOST_BYTES // 2**20} MiB')
    with warnings.catch_warnings():  # Of Pillow, on half as many pixels as it refuses.
      warnings.simplefilter('ignore', Image.DecompressionBombWarning)
      with Image.open(path) as image:
        if image.width * image.height > _MOST_PIXELS:
          raise ValueError(f'{image.width}x{image.height} are more than {_MOST_PIXELS // 10**6} '
                           'million pixels')
        if max(image.size) > _MOST_ELONGATED * min(image.size):
          raise ValueError(f'{image.width}x{image.height} are too narrow')
      image = ImageOps.exif_transpose(decode.decode(path.read_bytes(), channels))
  except decode.ERRORS as error:
    raise UserError(f'{field} must be an image that can be read, got {str(path)!r} '
                    f'({" ".join(str(error).split())})') from error
  if image.size == size:
    pixels = decode.to_array(image)
  elif size[0] == size[1]:
    pixels = decode.centre_crop(image, size[0])
  else:
    pixels = decode.to_array(ImageOps.fit(image, size, Image.Resampling.BILINEAR))
  return np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)))
