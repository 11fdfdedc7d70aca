"""Certifiers with a mistake planted in them, and the checks that have to find every one.

  python tests/planted.py

prints a table: the mistake, the check that found it, and its figure. A certifier is what
`certification.certify` is together with what counts its votes; a mistake is a few lines of one of
them. The classifiers are so small that the smoothed class, its probability and its radius are
known. Checks that count are binomial tests at `LEVEL`, checks of the draws compare votes that have
to be equal. None of `CHECKS` may flag a certifier of `SOUND`, and each of `PLANTED` has one that
has to.
"""

import functools
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from robust_jax import certification, keys  # noqa: E402
from robust_jax.certification import ESTIMATE, SELECT, bounds, certify, certify_by_rule  # noqa: E402
from robust_jax.types import Certificate  # noqa: E402

# Probability with which a check may flag a sound certifier.
LEVEL = 1e-6
SEED = 2
SHAPE = (5, 4)


# Classifiers. Their smoothed class and its radius have a closed form.


def sign(images):
  """Class 0 where the first pixel is positive: at pixel d, p_0 = Phi(d / sigma), radius |d|."""
  first = images.reshape(len(images), -1)[:, 0]
  return jnp.stack([first, -first], axis=-1)


# Of class 0 and of class 2, the strongest rival, at the pixel 0.
P_STRIPS = (0.6, 0.3)
STRIPS = special.ndtri(P_STRIPS[0]), -special.ndtri(P_STRIPS[1])


def strips(images):
  """Class 0 below the first edge, 2 above the second, and a narrow class 1 between them.

  At pixel 0 and sigma 1 the radius is (Phi^-1(p_0) - Phi^-1(p_2)) / 2, the bound with a runner-up.
  """
  first = images.reshape(len(images), -1)[:, 0]
  low, high = STRIPS
  return jax.nn.one_hot((first > low).astype(int) + (first > high), 3)


WALL = 2.9


def wall(images):
  """Class 0 where no pixel is below -WALL: p_0 = (1 - Phi(-WALL / sigma))^pixels at 0."""
  lowest = images.reshape(len(images), -1).min(axis=-1)
  return jnp.stack([lowest + WALL, jnp.zeros_like(lowest)], axis=-1)


def linear(images):
  """Four classes, each with a share of the votes."""
  weights = np.random.default_rng(0).normal(size=(np.prod(SHAPE), 4)).astype(np.float32)
  return (images - 0.5).reshape(len(images), -1) @ weights


# Certifiers.


class Certifier(NamedTuple):
  """What is checked.

  Attributes:
    certify: as `certification.certify`.
    count: number of devices -> what counts the votes on them, as `certification.count`.
  """

  certify: Any
  count: Any

  def __call__(self, logits_fn, images, *, devices=1, count=None, **settings):
    settings = {'sigma': 1.0, 'n0': 100, 'batch_size': 10_000, **settings}
    count = count or self.count(devices)
    return self.certify(keys.root(SEED), logits_fn, images, count=count, **settings)


def shared_count(devices):
  """`certification.count` on one device, `certification.sharded_count` on several."""
  if devices == 1:
    return certification.count
  return certification.sharded_count(jax.local_devices()[:devices])


def votes(phase, num, key, logits_fn, images, *, sigma, batch_size, example_ids=None, count,
          start=0):
  """[batch, classes] votes of a phase, NumPy."""
  if example_ids is None:
    example_ids = np.arange(len(images))
  phase_key = jax.random.fold_in(key, phase)
  return np.asarray(count(phase_key, logits_fn, images, np.asarray(example_ids), start, num,
                          sigma=sigma, batch_size=batch_size))


def at(counts, classes):
  return np.take_along_axis(counts, classes[:, None], axis=-1)[:, 0]


def certificate(selected, p_lower, sigma, counts0, counts, p_upper=None):
  """The certificate of a class from bounds of the probabilities."""
  certain = p_lower >= (0.5 if p_upper is None else p_upper)
  radius = bounds.certified_radius(p_lower, sigma, p_upper)
  return Certificate(np.where(certain, selected, -1), np.where(certain, radius, 0.0), p_lower,
                     counts0, counts)


def by_rule(make_rule):
  """A certifier that looks at the draws eight times or more, and stops by itself."""
  def certify_batch(key, logits_fn, images, *, sigma, n0, n, alpha, batch_size, example_ids=None,
                    count):
    rule = make_rule(sigma=sigma, n0=n0, n=n, alpha=alpha, first_look=n // 8,
                     batch_size=batch_size)
    return certify_by_rule(key, logits_fn, images, rule, example_ids=example_ids,
                           pool=len(images), count=count)

  return certify_batch


SOUND = {
  'certify': Certifier(certify, shared_count),
  'certify, runner-up': Certifier(functools.partial(certify, bound='runner_up'), shared_count),
  'sequential': Certifier(by_rule(certification.RadiusGrid), shared_count),
  'anytime': Certifier(by_rule(certification.Anytime), shared_count),
}


# Mistakes in the statistics.


def reused_draws(*args, n0, n, alpha, **kwargs):
  counts0 = votes(SELECT, n0, *args, **kwargs)
  counts = counts0 + votes(ESTIMATE, n, *args, **kwargs)
  selected = counts0.argmax(axis=-1)
  p_lower = bounds.clopper_pearson_lower(at(counts, selected), n0 + n, alpha)
  return certificate(selected, p_lower, kwargs['sigma'], counts0, counts)


def one_phase(*args, n0, n, alpha, **kwargs):
  counts0, counts = (votes(ESTIMATE, num, *args, **kwargs) for num in (n0, n))
  selected = counts0.argmax(axis=-1)
  p_lower = bounds.clopper_pearson_lower(at(counts, selected), n, alpha)
  return certificate(selected, p_lower, kwargs['sigma'], counts0, counts)


def class_from_counted(*args, n0, n, alpha, **kwargs):
  del n0
  counts = votes(ESTIMATE, n, *args, **kwargs)
  selected = counts.argmax(axis=-1)
  p_lower = bounds.clopper_pearson_lower(at(counts, selected), n, alpha)
  return certificate(selected, p_lower, kwargs['sigma'], counts, counts)


def rival_from_selection(*args, n0, n, alpha, **kwargs):
  """The runner-up among the n0 draws, where it may be another class than among all."""
  counts0 = votes(SELECT, n0, *args, **kwargs)
  counts = votes(ESTIMATE, n, *args, **kwargs)
  rival, selected = np.argsort(counts0, axis=-1, kind='stable')[:, -2:].T
  p_lower = bounds.clopper_pearson_lower(at(counts, selected), n, alpha / 2)
  p_upper = bounds.clopper_pearson_upper(at(counts, rival), n, alpha / 2)
  p_upper = np.minimum(p_upper, 1 - p_lower)
  return certificate(selected, p_lower, kwargs['sigma'], counts0, counts, p_upper)


def peeking(*args, n0, n, alpha, **kwargs):
  """The largest of the bounds at every eighth of the draws."""
  counts0 = votes(SELECT, n0, *args, **kwargs)
  selected, counts, p_lower, step = counts0.argmax(axis=-1), 0, 0.0, n // 8
  for look in range(1, 9):
    counts = counts + votes(ESTIMATE, step, *args, start=(look - 1) * step, **kwargs)
    bound = bounds.clopper_pearson_lower(at(counts, selected), look * step, alpha)
    p_lower = np.maximum(p_lower, bound)
  return certificate(selected, p_lower, kwargs['sigma'], counts0, counts)


def float32_bound(*args, n0, n, alpha, **kwargs):
  counts0, counts = votes(SELECT, n0, *args, **kwargs), votes(ESTIMATE, n, *args, **kwargs)
  selected = counts0.argmax(axis=-1)
  hits = at(counts, selected).astype(np.float32)
  misses = np.float32(n) - hits
  p_lower = special.betaincinv(np.maximum(hits, 1), misses + 1, np.float32(alpha))
  p_lower = np.nan_to_num(np.where(hits > 0, p_lower, 0)).astype(np.float64)
  return certificate(selected, p_lower, kwargs['sigma'], counts0, counts)


def batch_statistics(key, logits_fn, images, **kwargs):
  centred = jax.tree_util.Partial(_centred, jax.tree_util.Partial(logits_fn))
  return certify(key, centred, images, **kwargs)


def _centred(logits_fn, images):
  return logits_fn(images - images.mean(axis=0) + 0.5)


# Mistakes in the draws.


def bfloat16_noise(key, shape, sigma):
  noise = jax.random.normal(key, shape, jnp.bfloat16).astype(jnp.float32)
  return sigma * jax.lax.reduce_precision(noise, 8, 7)  # XLA may leave the rounding out.


def rbg_noise(key, shape, sigma):
  """Under vmap, jax draws the whole pass from the key of its first row."""
  data = jax.random.key_data(key)
  key = jax.random.wrap_key_data(jnp.concatenate([data, data]), impl='rbg')
  return sigma * jax.random.normal(key, shape)


def drawn_by(noise_fn):
  """Draws by `noise_fn`, whatever source the certifier names."""
  def count(*args, **kwargs):
    return certification.count(*args, **{**kwargs, 'noise_fn': noise_fn})

  return lambda devices: count


def keyed_by_position(devices):
  del devices

  def count(key, logits_fn, images, example_ids, start, num, **kwargs):
    del example_ids
    return certification.count(key, logits_fn, images, np.arange(len(images)), start, num, **kwargs)

  return count


def keyed_by_device(devices):
  """Each device draws its share of the draws from a key of its own."""
  def count(key, logits_fn, images, example_ids, start, num, **kwargs):
    return sum(
      np.asarray(certification.count(keys.fold_in(key, device), logits_fn, images,
                                     example_ids, start, num // devices, **kwargs))
      for device in range(devices))

  return count


# Name -> (certifier, the check that has to find the mistake).
PLANTED = {
  'bfloat16 noise': (Certifier(certify, drawn_by(bfloat16_noise)), 'contradictions'),
  'the n0 draws counted among the n': (Certifier(reused_draws, shared_count),
                                       'false at the boundary'),
  'one phase key: the n begin with the n0': (Certifier(one_phase, shared_count),
                                             'false at the boundary'),
  'class chosen on the counted draws': (Certifier(class_from_counted, shared_count),
                                        'false at the boundary'),
  'runner-up chosen on the n0 draws': (Certifier(rival_from_selection, shared_count),
                                       'false beside a rival'),
  'Clopper-Pearson at alpha, at every look': (Certifier(peeking, shared_count),
                                              'false at the boundary'),
  'Clopper-Pearson in float32': (Certifier(float32_bound, shared_count), 'level of the bound'),
  'vmapped rbg keys': (Certifier(certify, drawn_by(rbg_noise)), 'draws of the example'),
  'noise keyed by the place in the batch': (Certifier(certify, keyed_by_position),
                                            'draws of the id'),
  'noise keyed by the device': (Certifier(certify, keyed_by_device), 'draws on devices'),
  'batch statistics': (Certifier(batch_statistics, shared_count), 'draws of the example'),
}


# Checks.

# An n at which `certify` is false at the boundary at a rate of 0.99 alpha, for alpha = 0.05.
N_BOUNDARY = 230


class Finding(NamedTuple):
  """What a check says of a certifier: whether it is unsound, and the figure that shows it."""

  unsound: bool
  figure: str


def _too_many(false, trials, rate):
  """Whether independent events of probability at most `rate` are that many by chance."""
  return bool(stats.binom.sf(false - 1, trials, rate) < LEVEL)


def _false_rate(certifier, logits_fn, true_radius, num, n0, n, alpha):
  """Certificates of another class than 0, or beyond the true radius, at an image of zeros."""
  found = certifier(logits_fn, np.zeros((num, 1), np.float32), n0=n0, n=n, alpha=alpha)
  false = (found.prediction > 0) | (found.radius > true_radius)
  if true_radius == 0:
    false |= found.prediction == 0
  return Finding(_too_many(false.sum(), num, alpha),
                 f'{false.mean():.4f} false, {false.mean() / alpha:.2f} alpha')


def false_at_the_boundary(certifier):
  """Two classes of probability 1/2: whatever is certified is false."""
  return _false_rate(certifier, sign, 0.0, num=4000, n0=100, n=N_BOUNDARY, alpha=0.05)


def false_beside_a_rival(certifier):
  """Three classes, the third the runner-up; few draws to choose from."""
  radius = (special.ndtri(P_STRIPS[0]) - special.ndtri(P_STRIPS[1])) / 2
  return _false_rate(certifier, strips, radius, num=1500, n0=12, n=N_BOUNDARY, alpha=0.05)


def contradictions(certifier):
  """Two classes certified for one image: at an image, and within its radius.

  The other image is darker by 0.01 sigma at each of 100 pixels, 0.1 sigma away.
  """
  here = np.full((10, 100), 0.5, np.float32)
  images = np.concatenate([here, here - np.float32(0.01)])
  found = certifier(lambda x: wall(x - 0.5), images, n=4000, alpha=0.001)
  here, there = np.split(found.prediction, 2)
  both = (here >= 0) & (there >= 0) & (here != there) & (found.radius[:10] > 0.1)
  radius = f'{found.radius[:10].max():.2f} sigma certified'
  return Finding(_too_many(both.sum(), 10, 0.002), f'{radius}, {both.sum()} of 10 flip at 0.1')


N_CANNED = 100_000


def level_of_the_bound(certifier):
  """P(as many hits or more) where the true probability is p_lower: exact, at most alpha.

  From counts, not from draws: no classifier is run.
  """
  hits = np.concatenate([np.arange(50_000, 100_000, 997), 100_000 - np.arange(0, 200, 5)])

  def canned(key, logits_fn, images, example_ids, start, num, **kwargs):
    del key, logits_fn, images, kwargs
    # A share of the draws so far, so that all of them have `hits`.
    so_far = [hits[example_ids] * draws // N_CANNED for draws in (start, start + num)]
    return np.stack([so_far[1] - so_far[0], num - so_far[1] + so_far[0]], axis=-1)

  alpha = 0.001
  images = np.zeros((len(hits), 1), np.float32)
  found = certifier(sign, images, n0=1000, n=N_CANNED, alpha=alpha, count=canned)
  num, hits = found.counts.sum(axis=-1), found.counts[:, 0]
  level = (stats.binom.sf(hits - 1, num, found.p_lower) / alpha).max()
  return Finding(bool(level > 1 + 1e-8), f'error up to {level:.4f} alpha')


def _counts(certifier, images, ids, **settings):
  found = certifier(linear, images, example_ids=np.asarray(ids), n0=20, n=230, alpha=0.05,
                    batch_size=16, **settings)
  return np.concatenate([found.counts0, found.counts], axis=-1)


def _differing(*pairs):
  """How many of the images of the pairs of counts, which have to be equal, have other counts."""
  differ = sum(int((one != other).any(axis=-1).sum()) for one, other in pairs)
  return Finding(differ > 0, f'{differ} of {sum(len(one) for one, _ in pairs)} counts differ')


IDS = np.array([3, 1000, 77])


def _images():
  return np.random.default_rng(7).uniform(size=(3, *SHAPE)).astype(np.float32)


def draws_of_the_example(certifier):
  """The counts of an image beside others, in another order, and by itself, are equal."""
  images, order = _images(), np.array([2, 0, 1])
  whole = _counts(certifier, images, IDS)
  alone = [_counts(certifier, images[i:i + 1], IDS[i:i + 1])[0] for i in range(3)]
  return _differing((whole[order], _counts(certifier, images[order], IDS[order])),
                    (whole, np.array(alone)))


def draws_of_the_id(certifier):
  """Equal images have equal draws under one id, and other draws under another."""
  images = np.repeat(_images()[:1], 2, axis=0)
  counts, exchanged = _counts(certifier, images, [8, 9]), _counts(certifier, images, [9, 8])
  if (counts[0] == counts[1]).all():
    return Finding(True, 'one draw for two examples')
  return _differing((counts, exchanged[::-1]))


def draws_on_devices(certifier):
  """The counts on two devices are those on one."""
  return _differing((_counts(certifier, _images(), IDS),
                     _counts(certifier, _images(), IDS, devices=2)))


CHECKS = {
  'false at the boundary': false_at_the_boundary,
  'false beside a rival': false_beside_a_rival,
  'contradictions': contradictions,
  'level of the bound': level_of_the_bound,
  'draws of the example': draws_of_the_example,
  'draws of the id': draws_of_the_id,
  'draws on devices': draws_on_devices,
}


def main():
  os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=2'
  print(f'{"certifier":42}{"check":24}figure')
  for name, (certifier, _) in PLANTED.items():
    for check, run in CHECKS.items():
      finding = run(certifier)
      if finding.unsound:
        print(f'{name:42}{check:24}{finding.figure:46}caught', flush=True)
  for name, certifier in SOUND.items():
    for check, run in CHECKS.items():
      finding = run(certifier)
      print(f'{name:42}{check:24}{finding.figure:46}{"caught" if finding.unsound else "passes"}',
            flush=True)


if __name__ == '__main__':
  main()
