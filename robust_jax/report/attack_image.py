"""The page of one image file under attack, from the record and the PNGs that the stage has left."""

from pathlib import Path

import numpy as np

from robust_jax.analysis import Table
from robust_jax.report import charts, gallery, pages
from robust_jax.report.charts import Chart, Line

_STYLES = {'untargeted': charts.ATTACK, 'targeted': charts.VALIDATION}


def lines(record) -> str:
  """What became of the image and its adversarials, a line each.

  Args:
    record: the contents of NAME.json, as `stages.attack_image` writes it.
  """
  found = []
  for image in record['images']:
    end = ('' if image['kind'] == 'original' else
           f'; {_aim(record, image)}: {_verdict(image)}')
    found.append(f'{image["file"]}: {_class(image)} '
                 f'{pages.percent(image["probable"][0][1])}{end}')
  return '\n'.join(found)


def page(record, folder) -> str:
  """The HTML of the page; `folder` has the PNGs."""
  pixels = [gallery.read(Path(folder) / image['file']) for image in record['images']]
  original, *found = record['images']
  factor = gallery.magnification(np.stack(pixels[1:]) - pixels[0])
  cards = [[
      _picture(original, pixels[0], 'image', record['label']),
      gallery.Picture(gallery.data_uri(0.5 + factor * (each - pixels[0])),
                      f'its perturbation, magnified {factor:g} times', _distance(record, image),
                      f'change ×{factor:g}'),
      _picture(image, each, image['kind'], record['label'])]
           for image, each in zip(found, pixels[1:])]
  steps = np.arange(record['num_steps'] + 1)
  chart = Chart('loss', 'Cross-entropy', 'step', [
      Line(f'of {record["label"] if image["kind"] == "untargeted" else record["target"]}, '
           f'{image["kind"]}', _STYLES[image['kind']], steps, np.array(image['loss']))
      for image in found], size=(520, 300))
  table = Table([image['kind'] for image in record['images']], [
      [f'{name} {pages.percent(probability)}' for name, probability in row]
      for row in zip(*(image['probable'] for image in record['images']))])
  facts = [f'{record["model"]} on {record["dataset"]}',
           f'smoothed with Gaussian noise σ = {record["sigma"]:g}' if record['sigma'] else '',
           f'{_ball(record)}, {record["num_steps"]} steps of PGD']
  return pages.render(
      'attack_image.html', title=f'{Path(record["file"]).name} under attack',
      facts=[fact for fact in facts if fact], record=record, cards=cards, chart=chart, table=table,
      factor=factor, ball=_ball(record), verdicts=[
          (image, _aim(record, image), _verdict(image)) for image in found])


def _picture(image, pixels, title, label):
  right = image['predicted'] == label
  return gallery.Picture(
      gallery.data_uri(pixels), f'{title}: {_class(image)}',
      f'{"✓" if right else "✗"} {_class(image)}', title, 'right' if right else 'wrong',
      pages.percent(image['probable'][0][1]))


def _class(image):
  """What an image is classified as; where that is abstained from, the most frequent class too."""
  name = image['probable'][0][0]
  return name if image['predicted'] == name else f'{image["predicted"]}, most often {name}'


def _ball(record):
  return f'{pages.norm(record["norm"])} ε = {pages.epsilon(record["epsilon"])}'


def _distance(record, image):
  return f'{pages.norm(record["norm"])} norm {pages.epsilon(image["distance"])}'


def _aim(record, image):
  """What the attack was to reach."""
  return record['target'] if image['kind'] == 'targeted' else f'anything but {record["label"]}'


def _verdict(image):
  if image['adversarial']:
    return 'adversarial'
  rounded = image['before_rounding'] != image['predicted']
  return 'not adversarial' + (
      f' (before it was rounded to 8 bits: {image["before_rounding"]})' if rounded else '')
