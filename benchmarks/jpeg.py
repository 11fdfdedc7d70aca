"""How many of ImageNet's JPEGs one core decodes and cuts in a second, in several ways, in turns.

  python -m benchmarks.jpeg [--width=500 --height=375 --number=64 --rounds=7]
  python -m benchmarks.jpeg --data-dir=DIR --rates=100,200,400

'pillow' is what robust_jax.data does. 'draft' has Pillow decode at 1/2, 1/4 or 1/8 where what is
kept still has the pixels that are asked for. 'simplejpeg' and 'opencv', which requirements.txt has
not, take part where they are installed: simplejpeg decodes, whole or ('simplejpeg-scaled') at as
few eighths as will do, and Pillow cuts; OpenCV does both, with INTER_AREA where it shrinks. None
of them decodes a part of an image. Time is the processor's, of one thread. The difference from
'pillow' is the mean over pixels, in levels of 255.

With --data-dir, which has an imagenet2012 (`python tests/tiny_imagenet.py DIR --num_train=512
--sizes 375 500` writes one): the share of time that training waits for input, `input_wait` of
metrics.jsonl, beside an accelerator that takes so many images a second: a step is a sleep.
"""

import argparse
import importlib.util
import io
import statistics
import tempfile
import time

import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks.process import take_turns
from robust_jax import backend, data
from robust_jax.data import decode
from robust_jax.stages.metrics import Metrics

SIZE = 224


def made_up(rng, width, height):
  """The bytes of a JPEG of quality 90: smooth colours, detail and grain; 110 KB of 500x375."""
  def clouds(cell):
    coarse = rng.integers(0, 256, (height // cell + 2, width // cell + 2, 3), np.uint8)
    fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(fine, float) - 128

  grain = rng.normal(0, 15, (height, width, 1))
  values = np.clip(128 + 0.75 * clouds(40) + 0.25 * clouds(6) + grain, 0, 255)
  file = io.BytesIO()
  Image.fromarray(values.astype(np.uint8)).save(file, 'JPEG', quality=90)
  return file.getvalue()


# A way: (encoded, draws of decode.crop_box; None for evaluation) -> [SIZE, SIZE, 3] uint8.


def pillow(encoded, draws):
  image = decode.decode(encoded, 3)
  if draws is None:
    return decode.centre_crop(image, SIZE)
  return decode.resized_crop(image, (SIZE, SIZE), draws, mirrored=False)


def draft(encoded, draws):
  image = Image.open(io.BytesIO(encoded))
  size = image.size
  image.draft('RGB', _least(size, draws))
  return _cut(image, size, draws)


def simplejpeg(encoded, draws, *, scaled=False):
  import simplejpeg as library
  height, width, *_ = library.decode_jpeg_header(encoded)
  least = _least((width, height), draws) if scaled else (0, 0)
  pixels = library.decode_jpeg(encoded, min_width=least[0], min_height=least[1])
  return _cut(Image.fromarray(pixels), (width, height), draws)


def simplejpeg_scaled(encoded, draws):
  return simplejpeg(encoded, draws, scaled=True)


def opencv(encoded, draws):
  import cv2
  cv2.setNumThreads(1)
  pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)

  def resize(pixels, width, height):
    shrinks = pixels.shape[0] * pixels.shape[1] > width * height
    return cv2.resize(pixels, (width, height),
                      interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)

  height, width = pixels.shape[:2]
  if draws is None:
    short = round(SIZE * decode.RESIZE_RATIO)
    ratio = short / min(width, height)
    pixels = resize(pixels, int(width * ratio + 1e-6), int(height * ratio + 1e-6))
    top, left = (round((side - SIZE) / 2) for side in pixels.shape[:2])
    return pixels[top:top + SIZE, left:left + SIZE]
  left, top, width, height = decode.crop_box(width, height, draws)
  return resize(pixels[top:top + height, left:left + width], SIZE, SIZE)


WAYS = {'pillow': (pillow, 'PIL'), 'draft': (draft, 'PIL'),
        'simplejpeg': (simplejpeg, 'simplejpeg'),
        'simplejpeg-scaled': (simplejpeg_scaled, 'simplejpeg'), 'opencv': (opencv, 'cv2')}


def _least(size, draws):
  """The least (width, height) of an image in which what is kept has all its pixels."""
  if draws is None:
    scale = round(SIZE * decode.RESIZE_RATIO) / min(size)
  else:
    _, _, *box = decode.crop_box(*size, draws)
    scale = SIZE / min(box)
  return tuple(min(-int(-scale * side // 1), side) for side in size)


def _cut(image, size, draws):
  """What is kept of an image of `size`, which may have been decoded smaller."""
  if draws is None:
    return decode.centre_crop(image, SIZE)
  left, top, width, height = decode.crop_box(*size, draws)
  across, down = image.width / size[0], image.height / size[1]
  crop = image.crop((round(left * across), round(top * down),
                     round((left + width) * across), round((top + height) * down)))
  return np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def measure(images, draws, rounds):
  """{way: (images a second of each round, mean absolute difference from 'pillow')}."""
  ways = {name: way for name, (way, package) in WAYS.items() if importlib.util.find_spec(package)}
  expected = [pillow(*pair).astype(int) for pair in zip(images, draws)]
  differences = {name: np.mean([np.abs(way(*pair) - right).mean() for pair, right in zip(
      zip(images, draws), expected)]) for name, way in ways.items()}
  rates = {name: [] for name in ways}
  for number in range(rounds):
    for name in take_turns(ways, number):
      begun = time.process_time()
      for pair in zip(images, draws):
        ways[name](*pair)
      rates[name].append(len(images) / (time.process_time() - begun))
  return {name: (rates[name], differences[name]) for name in ways}


def waiting(data_dir, rate, *, batch_size=64, num_steps=40):
  """The record of metrics.jsonl of steps that take batch_size / rate seconds each."""
  dataset = data.load('imagenet2012', 'train', data_dir=data_dir, image_size=SIZE)
  batches = data.train_batches(dataset, batch_size=batch_size, seed=0, num_steps=num_steps,
                               augment='resized_crop')
  with tempfile.TemporaryDirectory() as workdir:
    metrics = Metrics(workdir, 0, None)
    for _ in metrics.timed(batches):
      time.sleep(batch_size / rate)
      metrics.add({'count': jnp.full((), batch_size)})
    return metrics.flush(num_steps, 0.)


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  for name, value in (('width', 500), ('height', 375), ('number', 64), ('rounds', 7)):
    parser.add_argument(f'--{name}', type=int, default=value)
  parser.add_argument('--data-dir')
  parser.add_argument('--rates', default='100,200,400', help='images a second')
  args = parser.parse_args()
  backend.tune()  # As a run: malloc keeps its memory.
  if args.data_dir:
    for rate in map(float, args.rates.split(',')):
      record = waiting(args.data_dir, rate)
      print(f'{rate:g} images/s: {record["images_per_second"]:,.0f} images/s, input_wait '
            f'{record["input_wait"]:.0%}', flush=True)
    return
  rng = np.random.default_rng(0)
  images = [made_up(rng, args.width, args.height) for _ in range(args.number)]
  print(f'{args.number} images of {args.width}x{args.height}, {np.mean([*map(len, images)]):,.0f} '
        'bytes each')
  for use, draws in (('training', rng.random((args.number, decode.CROP_TRIES, 4))),
                     ('evaluation', [None] * args.number)):
    found = measure(images, draws, args.rounds)
    for name, (rates, difference) in found.items():
      ratios = [rate / ours for rate, ours in zip(rates, found['pillow'][0])]
      print(f'{use}, {name}: {statistics.median(rates):,.0f} images/s '
            f'({min(rates):,.0f}–{max(rates):,.0f}), {statistics.median(ratios):.2f} times pillow '
            f'({min(ratios):.2f}–{max(ratios):.2f}), difference {difference:.2f}', flush=True)


if __name__ == '__main__':
  main()
