"""Whether attacks that failed could have succeeded: checks of an evaluation of robustness.

An attack that finds nothing is either up against a robust network or is a failed attack: its
gradients vanish, are noise or point nowhere, or it stopped too early. `examine` attacks a few
images in several ways that ought to agree (Carlini et al. 2019), and computes per-image indicators
of attack failure (Pintor et al. 2022).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_jax import inputs, keys, smoothing
from robust_jax.attacks import compilation, objectives, threat_models
from robust_jax.attacks.apgd import apgd_attack
from robust_jax.attacks.fgsm import fgsm
from robust_jax.attacks.square import square_attack
from robust_jax.attacks.targets import reached
from robust_jax.attacks.threat_models import column

# Accuracies that ought to be in order may be out of it by this share of the images, or by one.
_SLACK = 0.02
# Shares of images with an indicator of failure beyond which one is a warning.
_MANY = 0.1
# At the box's diameter there is an adversarial image for each that is not.
_LARGE_RADIUS = 0.05
# Pintor et al.: the loss is still rising where the last so many steps gain this part of its range;
# predictions are unstable where noise of this width changes margins by this part of themselves.
_LAST, _STILL_RISING = 10, 0.05
_WIDTH, _DRAWS, _UNSTABLE = 8 / 255, 20, 0.1


class Check(NamedTuple):
  """One line of an examination.

  Attributes:
    name: what is checked, as 'larger radius'.
    passed: whether it is as it has to be if attacks work.
    text: what was measured, in words.
    found: its value, as '12.5%'.
  """

  name: str
  passed: bool
  text: str
  found: str


class Examination(NamedTuple):
  """What `examine` found.

  Attributes:
    checks: list of Check.
    curves: {'epsilon' | 'steps' | 'restarts': ([n] values, [n] accuracies)}.
    indicators: {name: [batch] float in [0, 1]}: unavailable_gradients, unstable_predictions,
      silent_success, incomplete_optimization, unconstrained_attack_failure and, with a surrogate,
      transfer_failure; 0 is good.
    robust: [batch] bool, what no attack of the examination has broken within epsilon.
  """

  checks: list[Check]
  curves: dict[str, tuple[np.ndarray, np.ndarray]]
  indicators: dict[str, np.ndarray]
  robust: np.ndarray


def examine(key, logits_fn, images, labels, *, epsilon, norm='linf', noise=None, num_steps=100,
            restarts=3, num_queries=500, surrogate=None):
  """Attacks images in ways that have to agree where attacks work; says where they do not.

  PGD (steps of 2.5 epsilon / num_steps) at radii from epsilon / 4 to the diameter of the box, and
  at epsilon again from random starts; FGSM; APGD on the DLR loss; Square; noise as large as
  epsilon. Accuracy is the share of the images that are classified as their labels, all along the
  way of an attack.

  Args:
    key: one key or [batch] keys.
    logits_fn: images -> logits, normalisation included.
    images: [batch, ...] in [0, 1].
    labels: [batch] int.
    epsilon: radius in pixel units, a number > 0.
    norm: 'linf', 'l2' or 'l1'.
    noise: None, or [num_noise, batch, ...]: the smoothed classifier, through these draws.
    num_steps: of PGD and APGD.
    restarts: runs of PGD at epsilon, the first from the images themselves; at least 1.
    num_queries: of Square.
    surrogate: None, or the logits function of another network, whose adversarial images are tried
      on this one.

  Returns:
    Examination.

  Raises:
    ValueError: what attacks refuse, epsilon 0, or num_steps or restarts below 1.

  Reference:
    Carlini et al., On evaluating adversarial robustness, 2019; Pintor et al., Indicators of attack
    failure: debugging and improving optimization of adversarial examples, 2022.
  """
  inputs.check('epsilon', epsilon, np.isfinite(epsilon) & (np.asarray(epsilon) > 0), 'above 0')
  for name, value in (('num_steps', num_steps), ('restarts', restarts)):
    inputs.check(name, value, value >= 1, 'at least 1')
  epsilon = float(epsilon)
  victim = smoothing.victim(logits_fn, noise)
  images, labels, _, _ = inputs.attacked(victim, images, labels, epsilon=epsilon)
  labels = jnp.asarray(labels)
  start_keys, attack_keys, stability_keys = keys.uses(key, len(images), 3)

  def ascend(number, radius, function=logits_fn):
    path = compilation.call(
        _path, function, keys.fold_in(start_keys, number), smoothing.victim(function, noise),
        images, labels, jnp.float32(radius), number > 0, norm=norm, num_steps=num_steps)
    return _Path(*map(np.asarray, path))

  def broken_by(attack, **settings):
    found = attack(attack_keys, logits_fn, images, labels, epsilon=epsilon, noise=noise, norm=norm,
                   **settings)
    return np.asarray(found.success)

  clean = np.asarray(reached(victim.predict(images), labels))
  by_radius = {radius: ascend(0, radius) for radius in _radii(epsilon, norm, images.shape[1:])}
  runs = [by_radius[epsilon], *(ascend(number, epsilon) for number in range(1, restarts))]
  by_run = np.stack([run.success.any(axis=0) for run in runs])
  broken = {
      'clean': clean, 'pgd': by_run.any(axis=0), 'one step': broken_by(fgsm),
      'dlr': broken_by(apgd_attack, num_steps=num_steps, loss='dlr'),
      'square': broken_by(square_attack, num_queries=num_queries),
      'noise': np.asarray(compilation.call(
          _broken_by_noise, logits_fn, stability_keys, victim, images, labels,
          jnp.float32(epsilon), norm=norm)),
      'diameter': by_radius[max(by_radius)].success.any(axis=0)}
  indicators = {
      'unavailable_gradients': runs[0].stuck[0],
      'unstable_predictions': np.asarray(compilation.call(
          _instability, logits_fn, stability_keys, victim, images, labels)),
      'silent_success': broken['pgd'] & ~np.any([run.success[-1] for run in runs], axis=0),
      'incomplete_optimization': _still_rising(runs[0].loss),
      'unconstrained_attack_failure': ~broken['diameter']}
  if surrogate is not None:
    transferred = ascend(0, epsilon, surrogate)
    broken['transfer'] = np.asarray(reached(victim.predict(jnp.asarray(transferred.last)), labels))
    indicators['transfer_failure'] = transferred.success[-1] & ~broken['transfer']
  indicators = {name: np.asarray(values, float) for name, values in indicators.items()}
  curves = {
      'epsilon': _curve({0.: clean, **{radius: path.success.any(axis=0)
                                       for radius, path in by_radius.items()}}),
      'steps': _curve(dict(enumerate(np.logical_or.accumulate(runs[0].success)))),
      'restarts': _curve(dict(enumerate(np.logical_or.accumulate(by_run), 1)))}
  robust = ~np.any([found for name, found in broken.items() if name != 'diameter'], axis=0)
  same = _repeats(victim, images)
  return Examination(
      [Check('same answers', same, 'logits of the same images, asked again',
             'the same' if same else 'others'),
       *_compare(broken, by_run, indicators, np.diff(curves['epsilon'][1]))],
      curves, indicators, robust)


def _compare(broken, by_run, indicators, rises):
  """The `Check`s of shares of the images.

  Args:
    broken: {what: [batch] bool, whether it broke the image}; 'diameter' is PGD that far.
    by_run: [restarts, batch] bool, what each run of PGD broke.
    indicators: of `Examination`.
    rises: [radii - 1], of accuracy from a radius to the next.
  """
  num_images = len(broken['clean'])
  slack = max(_SLACK, 1 / num_images)
  left = ~(broken['clean'] | broken['pgd'])
  gain = lambda name: np.mean(broken[name]) - np.mean(broken['pgd'])
  alone = lambda name, *others: np.mean(broken[name] & ~np.any([broken[o] for o in others], axis=0))
  steady = indicators['unstable_predictions'][~broken['clean']]
  measured = [
      ('larger radius', np.mean(~broken['diameter']), _LARGE_RADIUS,
       'accuracy under PGD as far as the diameter of the box'),
      ('rising radius', rises.max(), slack, 'largest rise of accuracy from a radius to the next'),
      ('one step', gain('one step'), slack, 'accuracy under many steps above that under one'),
      ('noise', gain('noise'), slack, 'accuracy under PGD above that under noise of the same size'),
      ('other loss', alone('dlr', 'pgd'), slack,
       'images that APGD on the DLR loss breaks and PGD does not'),
      ('black box', alone('square', 'pgd', 'dlr'), slack,
       'images that Square breaks and no attack with gradients does'),
      ('gradients', np.mean(indicators['unavailable_gradients'] * left), _MANY,
       'images that PGD leaves, where the gradient is zero or not finite'),
      ('converged', np.mean(indicators['incomplete_optimization'] * left), _MANY,
       f'images that PGD leaves, whose loss was still rising in the last {_LAST} steps'),
      ('smooth', np.mean(steady) if len(steady) else 0., _UNSTABLE,
       'mean change of a margin, relative to itself, in slight noise'),
      ('last point', np.mean(indicators['silent_success']), _MANY,
       'images that were broken on the way and not at the end')]
  if len(by_run) > 1:
    measured.append(('restarts', np.mean(by_run[-1] & ~by_run[:-1].any(axis=0)), slack,
                     'images that the last restart alone breaks'))
  if 'transfer' in broken:
    measured.append(('transfer', alone('transfer', 'pgd'), slack,
                     "images that another network's adversarial images break and PGD does not"))
  return [Check(name, bool(value <= limit), text, f'{value + 0.:.1%}')
          for name, value, limit, text in measured]


class _Path(NamedTuple):
  """PGD from step 0 on: loss, success and whether there was no gradient, [num_steps + 1, batch].

  `last` is where it ended, [batch, ...].
  """

  loss: np.ndarray
  success: np.ndarray
  stuck: np.ndarray
  last: np.ndarray


def _path(key, victim, images, labels, epsilon, random_start, *, norm, num_steps):
  threat_model = threat_models.make(norm, epsilon)
  start_keys, step_keys = keys.uses(key, len(images), 2)

  def loss(x):
    logits = victim.logits(x)
    value = objectives.cross_entropy(logits, labels)
    return value.sum(), (value, smoothing.majority(logits))

  def step(x, t):
    gradient, (value, predicted) = jax.grad(loss, has_aux=True)(x)
    rows = gradient.reshape(len(x), -1)
    stuck = ~jnp.isfinite(rows).all(axis=1) | (rows == 0).all(axis=1)
    gradient = jnp.where(column(stuck, x), 1, gradient)
    moved = threat_model.ascend(keys.fold_in(step_keys, t), x, gradient,
                                2.5 * epsilon / num_steps)
    moved = jnp.where(column(stuck, x), x, threat_model.project(moved, images))
    return moved, (x, value, reached(predicted, labels), stuck)

  first = jnp.where(random_start, threat_model.random(start_keys, images), images)
  _, (points, *found) = jax.lax.scan(step, first, jnp.arange(num_steps + 1))
  return *found, points[-1]


def _broken_by_noise(key, victim, images, labels, epsilon, *, norm):
  """Whether one of some random points of the ball is misclassified."""
  threat_model = threat_models.make(norm, epsilon)
  draw = lambda i: reached(
      victim.predict(threat_model.random(keys.fold_in(key, i), images)), labels)
  return jax.lax.map(draw, jnp.arange(_DRAWS)).any(axis=0)


def _instability(key, victim, images, labels):
  """min(1, E |m(x + u) - m(x)| / |m(x)|) of the margin m, u uniform in a box of side `_WIDTH`."""
  margin = lambda x: objectives.margin(victim.logits(x), labels)
  around = threat_models.linf(_WIDTH / 2, order='ball_only')
  at_images = margin(images)
  draw = lambda i: jnp.abs(margin(around.random(keys.fold_in(key, i), images)) - at_images)
  change = jax.lax.map(draw, jnp.arange(_DRAWS)).mean(axis=0)
  return jnp.minimum(change / jnp.where(at_images == 0, 1, jnp.abs(at_images)), 1)


def _still_rising(loss):
  """Whether the largest loss so far gains much of its range in the last steps: [steps, batch]."""
  best = np.maximum.accumulate(np.nan_to_num(loss), axis=0)
  span = best[-1] - best[0]
  gained = best[-1] - best[-min(_LAST, len(best))]
  return gained > _STILL_RISING * span


def _curve(broken):
  """(values, accuracies) of {value: [batch] whether broken}."""
  return (np.array(list(broken), float),
          np.array([1 - np.mean(found) for found in broken.values()]))


def _radii(epsilon, norm, shape):
  """epsilon / 4, doubled up to the diameter of the box, which is the last one."""
  diameter = inputs.diameter(norm, shape)
  radii = [epsilon / 4, epsilon / 2, epsilon]
  while 2 * radii[-1] < diameter:
    radii.append(2 * radii[-1])
  return radii + [diameter] if radii[-1] < diameter else radii


def _repeats(victim, images):
  first, *others = (victim.logits(images) for _ in range(3))
  return all(bool(jnp.array_equal(first, other, equal_nan=True)) for other in others)
