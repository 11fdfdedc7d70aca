"""AutoAttack: a fixed suite of attacks, each on what the ones before it have not broken.

A part of the suite is one attack, made of runs: its restarts times its targets. What is undecided
of all images shares batches of one shape, a row for each (image, run). An image is in the queue of
a part until a run breaks it or all have failed, so that a run costs nothing for what is broken, and
each part is compiled once. Certification packs otherwise (`certification.stream`): its rows are
draws, of which an image needs many at a time.
"""

import collections
import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_jax import inputs, keys, smoothing
from robust_jax.attacks import objectives, threat_models
from robust_jax.attacks.apgd import apgd_attack
from robust_jax.attacks.fab import fab_attack
from robust_jax.attacks.square import square_attack
from robust_jax.devices import parallel
from robust_jax.types import Array, Attack

# In this order; the place of a part decides its random numbers.
PARTS = ('apgd-ce', 'apgd-dlr', 'apgd-t', 'fab', 'fab-t', 'square')
VERSIONS = {'standard': ('apgd-ce', 'apgd-t', 'fab-t', 'square'),
            'plus': ('apgd-ce', 'apgd-dlr', 'fab', 'square', 'apgd-t', 'fab-t'),
            'rand': ('apgd-ce', 'apgd-dlr')}
# Draws that stand for a stochastic classifier.
_DRAWS = 20
# The published package's bounds: of outputs that differ and of probabilities, and the loss of
# robust accuracy to Square that is suspect.
_DIFFERENT, _SUM, _SQUARE = 1e-4, 1e-5, 0.002


class Part(NamedTuple):
  """One attack of a suite.

  Attributes:
    name: one of `PARTS`.
    attack: `types.Attack` with its settings, which takes `only` (see `apgd_attack`).
    runs: its restarts times its targets.
  """

  name: str
  attack: Attack
  runs: int


class PartResult(NamedTuple):
  """What a part has done.

  Attributes:
    name: 'clean', the images as they are, or that of the part.
    robust_accuracy: the fraction of all images that are right after it and all before.
    seconds: its time, compilation included.
    broken: the number of images that it broke.
  """

  name: str
  robust_accuracy: float
  seconds: float
  broken: int


class AutoAttackResult(NamedTuple):
  """What a suite has found, one entry an image.

  Attributes:
    images: [batch, ...] float32: adversarial where `success`, else as they were given.
    success: [batch] bool: misclassified.
    broken_by: [batch] int: the place in `parts` of what broke the image, 0 where it was
      misclassified as it is; -1 where nothing has.
    parts: a `PartResult` each, the first one of the images as they are.
    flags: {name: sentence} of what makes the result doubtful; see `autoattack`.
  """

  images: Array
  success: Array
  broken_by: Array
  parts: tuple[PartResult, ...]
  flags: dict[str, str]


def autoattack(key, logits_fn, images, labels, *, epsilon, norm: threat_models.Norm = 'linf',
               version: str = 'standard', noise=None, batch_size=256, devices=None, verbose=False):
  """The worst case over a suite of attacks, as AutoAttack publishes it.

  'standard' is APGD on the cross-entropy, APGD on the DLR loss towards the nine most probable wrong
  classes, FAB towards the same, and Square with 5,000 queries; in l1, APGD has five restarts, then
  five targets, and the steps of `larger_first`. 'plus' is APGD and FAB without targets, five
  restarts each, Square, and both towards nine targets. 'rand' is for a stochastic classifier,
  logits_fn(images, key) -> logits: APGD on the cross-entropy and on DLR, of the mean of its
  probabilities over 20 draws, which are others at every candidate; other draws judge what is found.
  These draws, and so results, are others for other batch sizes and numbers of devices.

  Flags, by name, are doubts in the result:
    'random': the same images have other logits at a second call; needs version 'rand'.
    'probabilities': the logits are in [0, 1] and sum to 1: a softmax was not left out.
    'zero_gradient': the cross-entropy of some images that are classified rightly has the gradient
      zero, as beyond a gap of 104 between float32 logits (on some devices 88): attacks by that
      loss do not move there.
    'not_finite': some gradient was not finite; an attack stood still there.
    'square_better': Square, which sees no gradients, has lowered robust accuracy by more than 0.2
      points below what the attacks by gradients have left.
    'optimises': logits_fn differentiates something; attacks by gradients may miss the way through.
    'few_classes': with fewer than four classes the losses of 'apgd-t', with two those of
      'apgd-dlr', are differences of logits. With fewer than ten, every other class is a target.

  Args:
    key: one key or [batch] keys.
    logits_fn: images -> logits, normalisation included. What a plain function reads is read once.
    images: [batch, height, width, channel], float in [0, 1] or uint8, which are divided by 255.
    labels: [batch] int.
    epsilon: radius in pixel units, scalar or [batch].
    norm: 'linf', 'l2' or 'l1'.
    version: 'standard', 'plus' or 'rand', or parts: 'apgd-ce,square', or a list of names, at the
      settings of 'standard', those that it lacks at those of 'plus'.
    noise: None, or [num_noise, batch, ...], held fixed, of a smoothed classifier.
    batch_size: rows of a batch, at most, rounded up to a multiple of the devices.
    devices: list of devices that share the rows; None: the default one.
    verbose: print a line a part, and the flags.

  Returns:
    AutoAttackResult.

  Raises:
    ValueError: an unknown version, part or norm, or arguments as of any attack.

  Reference:
    Croce & Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks, 2020; Croce & Hein, Mind the box, 2021 (l1); flags of
    github.com/fra31/auto-attack.
  """
  version = version if isinstance(version, str) else tuple(version)
  names(version)
  inputs.check('batch_size', batch_size, batch_size >= 1, 'at least 1')
  if getattr(images, 'dtype', None) == np.uint8:
    images = np.asarray(images, np.float32) / 255
  images = inputs.images(images)
  example_keys = keys.per_example(key, len(images))
  attacked = judged = logits_fn
  if version == 'rand':
    attacked, judged = (expected(keys.fold_in(example_keys[0], use), logits_fn) for use in (0, 1))
  images, labels, epsilon, _ = inputs.attacked(
      smoothing.victim(attacked, noise), images, labels, epsilon=epsilon,
      norm=norm)
  num_classes = inputs.num_classes(attacked, images)
  suite = parts(version, norm, num_classes)
  images, labels = np.asarray(images), np.asarray(labels)
  epsilon = np.broadcast_to(epsilon, len(images))
  devices = tuple(devices or [_default_device()])
  # As few batches as may be, as even as may be.
  batch_size = -(-len(images) // -(-len(images) // batch_size))
  batch_size += -batch_size % len(devices)
  flags = examine(attacked, images[:batch_size], suite, random=version == 'rand')
  attacked, judged = smoothing.as_pytree(attacked), smoothing.as_pytree(judged)
  by_image = noise if noise is None else np.moveaxis(noise, 1, 0)

  def rows_of(jobs):
    """Index [batch_size] of the rows' images, filled up, and what stands for them."""
    index = np.resize([image for image, _ in jobs], batch_size)
    return index, images[index], labels[index], by_image if noise is None else by_image[index]

  def look(jobs):
    index, x, y, draws = rows_of(jobs)
    predicted, zero = _look(devices)(attacked, (x, y, draws))
    return [(int(c), bool(z)) for c, z, _ in zip(predicted, zero, jobs)]

  def attack(part, jobs):
    index, x, y, draws = rows_of(jobs)
    only = np.resize([number for _, number in jobs], batch_size).astype(np.int32)
    own_keys = keys.fold_in(example_keys[index], PARTS.index(part.name))
    found, predicted, undefined = _attack(
        devices, version, norm, num_classes, part.name)(
        (attacked, judged), (own_keys, x, y, epsilon[index], draws, only))
    not_finite.update(index[:len(jobs)][undefined[:len(jobs)]].tolist())
    return [found[row] if predicted[row] != y[row] else None for row in range(len(jobs))]

  result, broken_by, not_finite, zero = images.copy(), np.full(len(images), -1), set(), 0
  finished = []

  def finish(name, begun):
    place = len(finished)
    finished.append(PartResult(name, float(np.mean(broken_by < 0)), time.monotonic() - begun,
                               int(np.sum(broken_by == place))))
    if verbose:
      print(line(finished[-1]), flush=True)

  begun = time.monotonic()
  for first in range(0, len(images), batch_size):
    jobs = [(image, 0) for image in range(first, min(first + batch_size, len(images)))]
    for (image, _), (predicted, no_gradient) in zip(jobs, look(jobs)):
      if predicted != labels[image]:
        broken_by[image] = 0
      else:
        zero += no_gradient
  finish('clean', begun)
  for place, part in enumerate(suite, 1):
    begun = time.monotonic()
    left = dict.fromkeys(np.flatnonzero(broken_by < 0).tolist(), 0)
    for outcomes in packed(functools.partial(attack, part), left, part.runs, batch_size):
      for image, _, found in outcomes:
        if found is not None:
          result[image], broken_by[image] = found, place
    finish(part.name, begun)
  flags |= doubts(finished, zero, len(not_finite))
  if verbose:
    for sentence in flags.values():
      print(f'warning: {sentence}', flush=True)
  return AutoAttackResult(result, broken_by >= 0, broken_by, tuple(finished), flags)


def names(version) -> tuple[str, ...]:
  """The names of a version's parts.

  Args:
    version: a key of `VERSIONS`, a list of names of `PARTS`, or such names with commas between.

  Raises:
    ValueError: it is none of these, or has a part twice.
  """
  if isinstance(version, str):
    found = VERSIONS.get(version) or tuple(name.strip() for name in version.split(','))
  else:
    found = tuple(version)
  for name in found:
    if name not in PARTS:
      raise ValueError(f'version must be one of {", ".join(VERSIONS)}, or of the parts '
                       f'{", ".join(PARTS)}, got {name!r}')
  if not found or len({*found}) < len(found):
    raise ValueError(f'version must have each part once, got {version!r}')
  return found


def parts(version, norm, num_classes) -> tuple[Part, ...]:
  """The parts of a version; see `autoattack`.

  Args:
    version: see `names`.
    norm: 'linf', 'l2' or 'l1'.
    num_classes: there are no more targets than other classes.

  Raises:
    ValueError: an unknown version, part or norm.
  """
  if norm not in threat_models.NORMS:
    raise ValueError(f'norm must be one of {", ".join(threat_models.NORMS)}, got {norm!r}')
  sparse, others = norm == 'l1', num_classes - 1
  few = 1 if version == 'rand' else 5
  apgd = dict(norm=norm, num_steps=100, larger_first=sparse)
  settings = {
      'apgd-ce': (apgd_attack, dict(apgd, restarts=few if sparse or version == 'plus' else 1)),
      'apgd-dlr': (apgd_attack, dict(apgd, loss='dlr', restarts=few)),
      'apgd-t': (apgd_attack, dict(apgd, loss='dlr', num_targets=min(
          5 if sparse and version != 'plus' else 9, others))),
      'fab': (fab_attack, dict(norm=norm, num_steps=100, restarts=5)),
      'fab-t': (fab_attack, dict(norm=norm, num_steps=100, num_targets=min(9, others))),
      'square': (square_attack, dict(norm=norm, num_queries=5000))}
  return tuple(
      Part(name, functools.partial(attack, **values),
           values.get('restarts', 1) * max(values.get('num_targets', 0), 1))
      for name in names(version) for attack, values in [settings[name]])


def packed(attack, passed, num_runs, batch_size):
  """Tries the runs of a part on images, until one breaks them, in batches of undecided ones.

  A batch is filled with the next run of as many images as there are; where there are too few, with
  further runs of the same ones. What counts of an image is the first run that breaks it, so that
  nothing depends on how it was packed.

  Args:
    attack: [(image, run), ...], at most batch_size of them -> what it found of each, None: nothing.
    passed: {image: how many runs it has withstood}.
    num_runs: of the part.
    batch_size: rows of a batch.

  Yields:
    After each batch [(image, how many runs it has withstood, what was found or None), ...].
  """
  passed = {image: number for image, number in passed.items() if number < num_runs}
  waiting = collections.deque(passed)
  while waiting:
    images = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
    jobs = [(image, passed[image] + ahead) for ahead in range(num_runs) for image in images
            if passed[image] + ahead < num_runs][:batch_size]
    outcomes = {}
    for (image, number), found in zip(jobs, attack(jobs)):
      if outcomes.get(image, (0, None))[1] is None:
        outcomes[image] = number + (found is None), found
    for image, (number, found) in outcomes.items():
      passed[image] = number
      if found is None and number < num_runs:
        waiting.append(image)
    yield [(image, *outcome) for image, outcome in outcomes.items()]


def look(victim, labels, images):
  """(classes, whether the gradient of the cross-entropy is zero), [batch] each.

  Args:
    victim: `smoothing.Victim`.
    labels: [batch] int.
    images: [batch, ...].
  """

  def summed(x):
    logits = victim.logits(x)
    return jnp.sum(objectives.cross_entropy(logits, labels)), smoothing.majority(logits)

  gradient, predicted = jax.grad(summed, has_aux=True)(images)
  return predicted, jnp.all(gradient == 0, axis=tuple(range(1, images.ndim)))


def _default_device():
  device = jax.config.jax_default_device  # None, or also the name of a platform.
  return device if isinstance(device, jax.Device) else jax.local_devices(backend=device)[0]


@functools.lru_cache
def _look(devices):
  """`look` over devices: (logits_fn, (images, labels, noise by rows)) -> its result."""

  def look_at(logits_fn, rows):
    x, y, draws = rows
    return look(smoothing.victim(logits_fn, _noise(draws)), y, x)

  return parallel.map_rows(look_at, devices)


@functools.lru_cache
def _attack(devices, version, norm, num_classes, name):
  """A part of a suite over devices; each suite is compiled once.

  Returns:
    ((attacked, judged), (keys, images, labels, epsilon, noise by rows, only)) -> (images, the
    classes that `judged` gives them, undefined).
  """
  part, = (part for part in parts(version, norm, num_classes) if part.name == name)

  def attack(replicated, rows):
    attacked, judged = replicated
    own_keys, x, y, epsilon, draws, only = rows
    noise = _noise(draws)
    found = part.attack(own_keys, attacked, x, y, epsilon=epsilon, noise=noise, only=only)
    return (found.images, smoothing.victim(judged, noise).predict(found.images),
            jnp.broadcast_to(found.undefined, len(x)))

  return parallel.map_rows(attack, devices)


def _noise(draws):
  """[batch, num_noise, ...] as attacks take it, or None."""
  return draws if draws is None else jnp.moveaxis(draws, 1, 0)


def examine(logits_fn, images, suite, *, random=False) -> dict[str, str]:
  """The flags that a few calls of the classifier raise; see `autoattack`.

  Args:
    logits_fn: images -> logits, as it was given.
    images: [batch, ...], some of those that are attacked.
    suite: the `Part`s that are to run.
    random: whether other logits at each call are as meant.
  """
  if isinstance(logits_fn, jax.tree_util.Partial):
    logits_fn = functools.partial(_call, logits_fn)
  flags, logits = {}, np.asarray(logits_fn(images), np.float32)
  if not random and _differs(logits, (logits_fn(images) for _ in range(4))):
    flags['random'] = ("random: the same images have other logits at another call; version 'rand' "
                       'is for stochastic classifiers')
  if (logits >= -_SUM).all() and (logits <= 1 + _SUM).all() and (
      np.abs(logits.sum(axis=-1) - 1) < _SUM).all():
    flags['probabilities'] = ('probabilities: the logits are in [0, 1] and sum to 1; attacks need '
                              'what comes before the softmax')
  trace = jax.make_jaxpr(lambda x: logits_fn(x))(images).pretty_print(name_stack=True)
  if 'transpose(jvp(' in trace:
    flags['optimises'] = ('optimises: the classifier differentiates something; attacks by '
                          'gradients may not find the way through it')
  few, used = logits.shape[-1], {part.name for part in suite}
  if few < 4 and 'apgd-t' in used or few < 3 and 'apgd-dlr' in used:
    flags['few_classes'] = (f'few_classes: with {few} classes the DLR losses are differences of '
                            'logits')
  return flags


@jax.jit
def _call(logits_fn, images):
  return logits_fn(images)


def _differs(logits, again):
  """Whether other calls gave other classes or, each row scaled to length one, other logits."""
  unit = lambda z: z / (np.linalg.norm(z, axis=-1, keepdims=True) + 1e-10)
  for other in again:
    other = np.asarray(other, np.float32)
    change = np.linalg.norm(unit(other) - unit(logits), axis=-1)
    if (change > _DIFFERENT).any() or (other.argmax(-1) != logits.argmax(-1)).any():
      return True
  return False


def doubts(finished, zero, not_finite) -> dict[str, str]:
  """The flags that the attacks themselves raise; see `autoattack`.

  Args:
    finished: `PartResult`s, in order.
    zero: how many rightly classified images have the gradient zero.
    not_finite: how many images had a gradient that was not finite.
  """
  flags, before = {}, 1.
  if zero:
    flags['zero_gradient'] = (f'zero_gradient: the cross-entropy of {zero:,} rightly classified '
                              'images has the gradient 0; attacks by it do not move there')
  if not_finite:
    flags['not_finite'] = (f'not_finite: a gradient was not finite on {not_finite:,} images, '
                           'where an attack stood still')
  for part in finished:
    if part.name == 'square' and len(finished) > 2 and (
        before - part.robust_accuracy > _SQUARE + 1e-9):
      flags['square_better'] = (
          f'square_better: Square, without gradients, lowered robust accuracy by '
          f'{100 * (before - part.robust_accuracy):.2f} points; the attacks by gradients may be '
          'misled')
    before = part.robust_accuracy
  return flags


def line(part) -> str:
  """A `PartResult` in words."""
  if part.name == 'clean':
    return f'clean accuracy: {part.robust_accuracy:.2%} ({part.seconds:.1f} s)'
  return (f'robust accuracy after {part.name}: {part.robust_accuracy:.2%} ({part.seconds:.1f} s, '
          f'{part.broken:,} images broken)')


def expected(key, logits_fn):
  """The log of a stochastic classifier's mean probabilities over draws: images -> [batch, classes].

  The draws are others for other images, in any bit, as an attack goes from one candidate to the
  next, and the same ones for the same images.

  Args:
    key: one key.
    logits_fn: (images, one key) -> logits.
  """
  return jax.tree_util.Partial(_expected, key, smoothing.as_pytree(logits_fn))


def _expected(key, logits_fn, images):
  bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(images), jnp.uint32).ravel()
  # A sum with odd weights, so that pixels that change places change it too.
  own = keys.fold_in(key, jnp.sum(bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1)))
  draws = keys.fold_in(own, jnp.arange(_DRAWS))
  logits = jax.vmap(lambda k: inputs.logits(logits_fn(images, k), len(images)))(draws)
  return smoothing.log_mean_probs(jax.nn.log_softmax(logits))
