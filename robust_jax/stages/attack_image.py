"""The attack_image stage: one image file under attack, as PNGs that are verified, and a page.

It is no part of the attack stage, whose results are kept and belong to one config and one split:
here one photograph follows another, the images of the dataset need not be there, and nothing is
remembered.
"""

import functools
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from robust_jax import certification, keys, losses, named, smoothing
from robust_jax import report as reports
from robust_jax.attacks import objectives, threat_models
from robust_jax.attacks.pgd import pgd
from robust_jax.certification.judge import beaten, label_votes
from robust_jax.data import arrays, decode, image_file
from robust_jax.errors import UserError, suggest
from robust_jax.report import gallery
from robust_jax.stages import weights
from robust_jax.workdir import records

# The steps' total length over epsilon, as Madry et al. have it.
_STEP_RATIO = 2.5
# Probable classes that are listed of each image.
_NUM_LISTED = 5


def attack_image(run, workdir):
  """Attacks config.attack_image.file: a page, PNGs and figures in WORKDIR/attack_image.

  By PGD on the cross-entropy, once away from the label and, with a target, once towards it. The
  result is rounded to 8 bits within the ball and written; what is said of it is said of the file.

  Raises:
    UserError: as `check`; the classifier has no class for the image, or the target is its label.
  """
  settings, names = run.attack_image, run.test_data.class_names
  original, label, target = check(run)
  logits_fn, origin, _ = weights.load(run, workdir)
  norm, epsilon = _norm(run), settings.epsilon or max(run.evaluation.epsilons)
  kinds = ['untargeted'] if target is None else ['untargeted', 'targeted']
  # As many each time as in the end, so that one program is compiled.
  judged = functools.partial(_judge, run, logits_fn)
  clean = judged(np.stack([original] * (1 + len(kinds))))[0][0]
  if label is None and clean < 0:
    raise UserError(f'config.attack_image.label must be given: the classifier has no class for '
                    f'{settings.file!r}')
  is_given, label = label is not None, int(clean) if label is None else label
  if target == label:
    raise UserError('config.attack_image.target must be another class than the label, got '
                    f'{gallery.class_name(target, names)!r}')
  pixels = np.stack([original] * len(kinds)).astype(np.float32) / 255
  found, loss, undefined = jax.device_get(_ascend(
      *_victim(run, logits_fn, pixels), pixels, np.array([label, target][:len(kinds)]),
      np.array([1., -1.][:len(kinds)], np.float32), epsilon, norm=norm,
      num_steps=settings.num_steps))
  unrounded = judged(np.stack([original / np.float32(255), *found]))[0][1:]
  levels = [original, *(to_levels(original, each, norm=norm, epsilon=epsilon) for each in found)]

  stem = Path(workdir) / 'attack_image' / named.file(settings.file, '').stem
  stem.parent.mkdir(exist_ok=True)
  files = [Path(f'{stem}_{kind}.png') for kind in ('original', *kinds)]
  for path, image in zip(files, levels):
    records.write_bytes(path, _png(image))
  written = np.stack([decode.to_array(Image.open(path)) for path in files])
  predicted, probabilities = judged(written)
  wrong = _wrong(run, predicted, probabilities, label)
  distances = threat_models.norms(written / np.float32(255) - pixels[0], norm)
  name_of = lambda number: gallery.class_name(int(number), names)
  images = [{
      'kind': kind, 'file': path.name, 'predicted': name_of(predicted[i]),
      'adversarial': bool(predicted[i] == target if kind == 'targeted' else wrong[i]),
      'probable': [[name_of(k), float(probabilities[i, k])]
                   for k in np.argsort(-probabilities[i], kind='stable')[:_NUM_LISTED]],
      'probability_of_label': float(probabilities[i, label]), 'distance': float(distances[i])}
            for i, (kind, path) in enumerate(zip(('original', *kinds), files))]
  for i, image in enumerate(images[1:]):
    image |= {'loss': loss[:, i].tolist(), 'undefined': bool(undefined[i]),
              'before_rounding': name_of(unrounded[i])}
  record = {
      'file': settings.file, 'model': run.config['model']['name'], 'dataset': run.data.name,
      'weights': run.config['weights'] if origin['checkpoint_step'] is None else None, **origin,
      'label': name_of(label), 'label_given': is_given,
      'target': None if target is None else name_of(target), 'norm': norm, 'epsilon': epsilon,
      'num_steps': settings.num_steps, 'sigma': run.attacked_sigma, 'seed': run.config['seed'],
      'images': images}
  records.write_json(f'{stem}.json', record)
  page, text = reports.build_image(f'{stem}.json')
  print(text, f'page: {page}', sep='\n')


def check(run):
  """What config.attack_image asks for: (pixels [h, w, c] uint8, label, target).

  The label and the target are numbers, None where none is given.

  Raises:
    UserError: a file that is no image, or a class that there is not.
  """
  settings, names = run.attack_image, run.test_data.class_names
  if settings.file is None:
    raise UserError('config.attack_image.file must be an image, got None')
  path = named.file(settings.file, 'config.attack_image.file')
  label, target = (_class(getattr(settings, field), names, f'config.attack_image.{field}')
                   for field in ('label', 'target'))
  if label is not None and label == target:
    raise UserError('config.attack_image.target must be another class than the label, got '
                    f'{settings.target!r}')
  pixels = image_file.read(path, run.test_data.image_shape, pad=run.data.pad,
                           field='config.attack_image.file')
  return pixels, label, target


def to_levels(original, found, *, norm, epsilon):
  """A perturbed image with pixels in whole 255ths, in the ball as before.

  Every change is rounded towards zero first. Then those that were cut most become one level more,
  one after the other, as far as the ball has room; in linf those of half a level or more.

  Args:
    original: [...] uint8.
    found: [...] in [0, 1], within epsilon of it.
    norm: 'linf', 'l2' or 'l1'.
    epsilon: radius in pixel units.

  Returns:
    [...] uint8.
  """
  change = (255. * found - original).ravel()
  whole, radius = np.floor(np.abs(change)), 255 * epsilon * (1 + 1e-6)
  part = np.abs(change) - whole
  if norm == 'linf':
    whole += (part >= 0.5) & (whole + 1 <= radius)
  else:
    costs, room = {'l2': (2 * whole + 1, radius**2 - np.sum(whole**2)),
                   'l1': (np.ones_like(whole), radius - np.sum(whole))}[norm]
    order = np.argsort(-part, kind='stable')
    order = order[part[order] > 1e-3]  # Less is float32's rounding.
    whole[order[np.cumsum(costs[order]) <= room]] += 1
  return (original + (np.sign(change) * whole).reshape(original.shape)).astype(np.uint8)


def _norm(run):
  """The norm of config.attack, l2 where it has none of the three."""
  norm = run.config['attack'].get('norm')
  return norm if norm in threat_models.NORMS else 'l2'


def _class(text, names, field):
  """The number of the class that a string names or numbers; None of None."""
  if text is None:
    return None
  numbers = {str(i): i for i in range(len(names))}
  numbers |= {gallery.class_name(i, names).lower(): i for i in range(len(names))}
  numbers |= {name.lower(): i for i, name in enumerate(names)}
  if text.lower() not in numbers:
    shown = [gallery.class_name(i, names) for i in range(len(names))]
    raise UserError(f'{field} must be the name or number of one of {len(names)} classes, such as '
                    f'{shown[0]!r} or {shown[-1]!r}, got {text!r}{suggest(text, shown)}')
  return numbers[text.lower()]


def _victim(run, logits_fn, pixels):
  """(key, `smoothing.Victim`): of a smoothed classifier with num_noise draws."""
  example_keys = keys.per_example(run.key('attack'), len(pixels))
  noise = smoothing.sample_noise(
      keys.fold_in(example_keys, 1), pixels, sigma=run.attacked_sigma,
      num_noise=run.evaluation.num_noise) if run.attacked_sigma else None
  return keys.fold_in(example_keys, 0), smoothing.victim(logits_fn, noise)


def _cross_entropy(logits, classes, signs):
  return signs * objectives.cross_entropy(logits, classes)


@functools.partial(jax.jit, static_argnames=('norm', 'num_steps'))
def _ascend(key, victim, images, classes, signs, epsilon, *, norm, num_steps):
  """PGD on signs * cross-entropy of `classes`.

  Returns:
    (images, cross-entropy [num_steps + 1, batch] of all iterates, undefined [batch]).
  """
  objective = victim.objective(_cross_entropy, classes, signs)
  threat_model = threat_models.make(norm, epsilon)

  def step(x, t):
    found = pgd(keys.fold_in(key, t), objective, images, threat_model, num_steps=1, start=x,
                step_size=_STEP_RATIO * epsilon / num_steps)
    return found.images, (found.objective, found.undefined)

  found, (ascended, undefined) = jax.lax.scan(step, images, jnp.arange(num_steps))
  first = objective(images)[None]
  return found, signs * jnp.concatenate([first, ascended]), jnp.any(undefined, axis=0)


def _judge(run, logits_fn, images):
  """What the (smoothed) classifier says of images, uint8 or in [0, 1].

  Returns:
    (classes [batch], -1 where it abstains; probabilities [batch, classes], of a smoothed one the
    shares of the votes).
  """
  images = jnp.asarray(arrays.scaled(images))
  if not run.attacked_sigma:
    logits = _logits(logits_fn, images)
    return np.asarray(losses.predicted(logits)), np.asarray(jax.nn.softmax(logits))
  count = certification.sharded_count(run.devices)
  drawn = dict(sigma=run.attacked_sigma, batch_size=run.config['certify']['batch_size'])
  classes = certification.predict(run.key('attack'), logits_fn, images, n=run.evaluation.n,
                                  alpha=run.evaluation.alpha, count=count, **drawn)
  votes = count(jax.random.fold_in(run.key('attack'), certification.PREDICT), logits_fn, images,
                np.arange(len(images)), 0, run.evaluation.n, **drawn)
  return classes, np.asarray(votes) / run.evaluation.n


def _wrong(run, classes, probabilities, label):
  """[batch]: whether what `_judge` says of images shows that their class is not the label."""
  if not run.attacked_sigma:
    return (classes != label) & (classes >= 0)
  settings = run.evaluation
  counts = np.rint(settings.n * probabilities).astype(int)
  votes = label_votes(counts, np.full(len(classes), label))
  return beaten(votes, alpha=settings.alpha, num_classes=probabilities.shape[-1])


_logits = jax.jit(lambda logits_fn, images: logits_fn(images))


def _png(levels):
  file = io.BytesIO()
  decode.from_array(levels).save(file, 'PNG')
  return file.getvalue()
