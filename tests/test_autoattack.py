"""The suite: how it packs, what each part adds, what it costs for what is broken, and its flags."""

import functools
import sys

import golden_attacks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import attacks, keys, smoothing
from robust_jax.attacks import threat_models
from robust_jax.attacks.autoattack import PARTS, examine, names, packed, parts

KEY = jax.random.key(3)
SIDE, CLASSES, RADII = 6, golden_attacks.CLASSES, {'linf': 0.03, 'l2': 0.15, 'l1': 0.6}
PARAMS = golden_attacks.weights(2, SIDE**2)
IMAGES = np.random.default_rng(3).uniform(size=(20, SIDE, SIDE, 1)).astype(np.float32)
LABELS = golden_attacks.network(PARAMS, IMAGES).argmax(-1)
NETWORK = jax.tree_util.Partial(
    functools.partial(golden_attacks.network, np=jnp),
    {name: jnp.asarray(value, jnp.float32) for name, value in PARAMS.items()})


@pytest.mark.parametrize('num_images, num_runs, size', [
    (1, 1, 4), (10, 1, 4), (10, 5, 4), (3, 5, 8), (3, 9, 64), (40, 3, 8), (0, 2, 4)])
def test_packing_finds_the_first_run_that_breaks_an_image(num_images, num_runs, size):
  rng = np.random.default_rng(num_images)
  # An image is broken by its runs from a number on, maybe by none.
  breaks = rng.integers(0, num_runs + 2, num_images)
  passed = {image: int(rng.integers(0, num_runs)) for image in range(num_images)}
  asked, ends = [], {}

  def attack(jobs):
    assert 0 < len(jobs) <= size and len({*jobs}) == len(jobs)
    asked.append(jobs)
    return [number if number >= breaks[image] else None for image, number in jobs]

  for outcomes in packed(attack, passed, num_runs, size):
    for image, number, found in outcomes:
      assert image not in ends
      if found is not None or number == num_runs:
        ends[image] = found
  expected = {image: max(passed[image], breaks[image]) for image in range(num_images)}
  assert ends == {image: first if first < num_runs else None for image, first in expected.items()}
  # No run twice; beyond the first that breaks an image only what would have been padding.
  rows = [job for jobs in asked for job in jobs]
  assert len({*rows}) == len(rows)
  assert all(len(jobs) == size for jobs in asked[:-1] if num_images > size) or num_images <= size
  needed = sum(min(first, num_runs - 1) - passed[image] + 1 for image, first in expected.items())
  full = sum(len(jobs) for jobs in asked if len({image for image, _ in jobs}) == size)
  assert full <= needed


@pytest.mark.parametrize('attack, settings, runs', [
    (attacks.apgd_attack, dict(loss='dlr', num_targets=3, num_steps=10), 3),
    (attacks.apgd_attack, dict(restarts=3, num_steps=10, norm='l2'), 3),
    (attacks.square_attack, dict(restarts=3, num_queries=10), 3),
    (attacks.fab_attack, dict(num_targets=3, num_steps=10), 3)])
def test_single_runs_are_those_of_the_whole_attack(attack, settings, runs):
  attack = functools.partial(attack, epsilon=0.03, **settings)
  whole = attack(KEY, NETWORK, IMAGES, LABELS)
  # Every image's runs side by side, in one batch.
  image, number = (grid.ravel() for grid in np.meshgrid(np.arange(len(IMAGES)), np.arange(runs)))
  alone = attack(keys.per_example(KEY, len(IMAGES))[image], NETWORK, IMAGES[image], LABELS[image],
                 only=number)
  success = np.asarray(alone.success).reshape(runs, -1)
  np.testing.assert_array_equal(whole.success, success.any(axis=0))
  first = success.argmax(axis=0)
  broken = np.flatnonzero(whole.success)
  assert 0 < len(broken) < len(IMAGES)
  if attack.func is attacks.fab_attack:
    return  # The whole attack goes on to what is closest.
  found = alone.images.reshape(runs, *IMAGES.shape)[first[broken], broken]
  np.testing.assert_allclose(found, whole.images[broken], atol=1e-4)


@pytest.mark.parametrize('norm', RADII)
def test_the_suite(norm, capsys):
  epsilon = RADII[norm]
  labels = np.where(np.arange(20) < 2, (LABELS + 1) % CLASSES, LABELS)
  result = attacks.autoattack(KEY, NETWORK, IMAGES, labels, norm=norm, epsilon=epsilon,
                              version='apgd-ce' if norm == 'l1' else 'apgd-ce,apgd-t',
                              batch_size=8, verbose=True)
  assert (threat_models.norms(result.images - IMAGES, norm) <= epsilon * (1 + 1e-5) + 1e-6).all()
  assert (result.images >= 0).all() and (result.images <= 1).all()
  np.testing.assert_array_equal(result.success, NETWORK(result.images).argmax(-1) != labels)
  np.testing.assert_array_equal(result.images[~result.success], IMAGES[~result.success])
  np.testing.assert_array_equal(result.broken_by == 0, np.arange(20) < 2)
  assert [part.name for part in result.parts] == ['clean', 'apgd-ce', 'apgd-t'][:len(result.parts)]
  for place, part in enumerate(result.parts):
    assert part.broken == np.sum(result.broken_by == place)
    assert part.robust_accuracy == np.mean((result.broken_by < 0) | (result.broken_by > place))
  assert 0 < result.success.mean() < 1
  assert not result.flags
  # Never weaker than one of its parts by itself.
  alone = attacks.apgd_attack(KEY, NETWORK, IMAGES, labels, norm=norm, epsilon=epsilon,
                              num_steps=100)
  assert result.success.sum() >= alone.success.sum()
  printed = capsys.readouterr().out
  assert 'clean accuracy: 90.00%' in printed and 'robust accuracy after apgd-ce: ' in printed
  assert 'warning' not in printed


@pytest.mark.slow
@pytest.mark.parametrize('norm', golden_attacks.SUITE)
def test_it_is_as_strong_as_the_published_package(norm):
  params, images, labels = golden_attacks.suite_problem()
  classifier = jax.tree_util.Partial(
      functools.partial(golden_attacks.network, np=jnp),
      {name: jnp.asarray(value, jnp.float32) for name, value in params.items()})
  epsilon, robust = golden_attacks.SUITE[norm]
  found = attacks.autoattack(KEY, classifier, images, labels, norm=norm, epsilon=epsilon)
  assert np.sum(~found.success) <= robust + 0.005 * len(images)
  assert found.flags == {}


def test_a_smoothed_classifier_through_its_draws():
  noise = smoothing.sample_noise(KEY, IMAGES, sigma=0.05, num_noise=3)
  result = attacks.autoattack(KEY, NETWORK, IMAGES, LABELS, epsilon=0.03, version='apgd-ce',
                              noise=noise, batch_size=20)
  predicted = smoothing.victim(NETWORK, noise).predict(result.images)
  np.testing.assert_array_equal(result.success, predicted != LABELS)


def test_a_result_depends_on_no_batch():
  find = functools.partial(attacks.autoattack, KEY, NETWORK, epsilon=0.03, version=['apgd-t'])
  together = find(IMAGES, LABELS)
  for size in (20, 7):
    apart = find(IMAGES, LABELS, batch_size=size)
    np.testing.assert_array_equal(apart.success, together.success)
    np.testing.assert_allclose(apart.images, together.images, atol=1e-5)


def test_a_result_does_not_depend_on_devices():
  noise = 0.1 * np.random.default_rng(0).normal(size=(2, *IMAGES.shape)).astype(np.float32)
  find = functools.partial(attacks.autoattack, KEY, NETWORK, IMAGES, LABELS, epsilon=0.03,
                           noise=noise, version=['apgd-ce', 'fab-t'], batch_size=20)
  one, three = find(), find(devices=jax.devices()[:3])
  assert 0 < one.success.mean() < 1
  np.testing.assert_array_equal(one.broken_by, three.broken_by)
  np.testing.assert_allclose(one.images, three.images, atol=1e-5)


def test_images_of_8_bits():
  pixels = np.round(255 * IMAGES).astype(np.uint8)
  find = functools.partial(attacks.autoattack, KEY, NETWORK, labels=LABELS, epsilon=0.03,
                           version='apgd-ce')
  bits, floats = find(pixels), find(np.float32(pixels / 255))
  np.testing.assert_array_equal(bits.images, floats.images)


def linear_logits(weights, images):
  return images.reshape(len(images), -1) @ weights


def ten_classes(scale=1.):
  """A linear classifier of ten classes, and its labels of the images."""
  weights = np.random.default_rng(0).normal(size=(SIDE**2, 10)).astype(np.float32) * scale
  labels = linear_logits(weights, IMAGES).argmax(-1)
  return jax.tree_util.Partial(linear_logits, jnp.asarray(weights)), labels


def flags(logits_fn, labels, version='apgd-ce', epsilon=0.01):
  return attacks.autoattack(KEY, logits_fn, IMAGES, labels, epsilon=epsilon, version=version,
                            batch_size=20).flags


def test_an_ordinary_classifier_raises_no_flag():
  linear, labels = ten_classes()
  assert flags(linear, labels, 'apgd-ce,apgd-t') == {}
  assert flags(lambda x: linear(x), labels) == {}


def test_zero_gradients():
  linear, labels = ten_classes(1e5)
  logits = np.sort(linear(IMAGES), axis=-1)
  assert (logits[:, -1] - logits[:, -2] > 104).all()
  assert ' 20 rightly' in flags(linear, labels)['zero_gradient']


def test_a_random_classifier():
  linear, labels = ten_classes()
  calls = iter(range(10**6))
  noisy = lambda x: linear(x) + 0.1 * jax.random.normal(jax.random.key(next(calls)), (len(x), 10))
  assert 'rand' in flags(noisy, labels)['random']


def test_a_stochastic_classifier_is_attacked_through_many_draws(monkeypatch):
  monkeypatch.setattr(sys.modules['robust_jax.attacks.autoattack'], '_DRAWS', 5)
  linear, labels = ten_classes()

  def noisy(images, key):
    return linear(images + 0.02 * jax.random.normal(key, images.shape))

  result = attacks.autoattack(KEY, noisy, IMAGES, labels, epsilon=0.02, version='rand')
  exact = attacks.autoattack(KEY, linear, IMAGES, labels, epsilon=0.02, version='apgd-ce')
  assert result.flags == {}
  assert [part.name for part in result.parts] == ['clean', 'apgd-ce', 'apgd-dlr']
  # A linear classifier's mean over the noise is itself, but for what lies at the boundary.
  assert abs(result.success.mean() - exact.success.mean()) <= 0.1


def test_probabilities_for_logits():
  linear, labels = ten_classes()
  assert 'softmax' in flags(lambda x: jax.nn.softmax(linear(x)), labels)['probabilities']


def test_a_classifier_that_optimises():
  linear, _ = ten_classes()

  def purified(images):
    gradient = jax.grad(lambda x: jnp.sum(jax.nn.logsumexp(linear(x), axis=-1)))(images)
    return linear(images - 0.01 * gradient)

  for logits_fn in (purified, jax.jit(purified), jax.tree_util.Partial(purified)):
    assert set(examine(logits_fn, IMAGES, ())) == {'optimises'}
  assert not examine(linear, IMAGES, ())


def test_square_does_better_where_gradients_mislead():
  linear, labels = ten_classes()
  # Steps have no slope; what is added has one, which leads nowhere.
  stepped = lambda x: linear(jnp.round(x * 100) / 100)
  found = attacks.autoattack(KEY, stepped, IMAGES, labels, epsilon=0.03,
                             version='apgd-ce,square', batch_size=20)
  assert {'square_better', 'zero_gradient'} <= set(found.flags)
  assert found.parts[-1].broken > 0


def test_gradients_that_are_not_finite():
  linear, labels = ten_classes()
  broken = lambda x: linear(x) + jnp.sqrt(0. * x.sum(axis=(1, 2, 3)))[:, None]
  assert ' 20 images' in flags(broken, labels)['not_finite']


@pytest.mark.parametrize('classes, part', [(2, 'apgd-dlr'), (3, 'apgd-t')])
def test_few_classes(classes, part):
  linear, _ = ten_classes()
  few = lambda x: linear(x)[:, :classes]
  labels = few(IMAGES).argmax(-1)
  assert f'with {classes} classes' in flags(few, labels, part)['few_classes']


def test_the_parts_of_the_published_suite():
  settings = lambda version, norm='linf', classes=10: {
      part.name: (part.runs, {**part.attack.keywords}) for part in parts(version, norm, classes)}
  runs = lambda *args: [part[0] for part in settings(*args).values()]
  assert runs('standard') == [1, 9, 9, 1] and runs('standard', 'l1') == [5, 5, 9, 1]
  assert runs('standard', 'linf', 3) == [1, 2, 2, 1] and runs('plus') == [5, 5, 5, 1, 9, 9]
  assert settings('standard')['square'][1]['num_queries'] == 5000
  assert settings('standard', 'l1')['apgd-ce'][1]['larger_first']
  assert [values[1]['num_steps'] for values in settings('rand').values()] == [100, 100]
  assert names('standard') == ('apgd-ce', 'apgd-t', 'fab-t', 'square')
  assert names('plus') == ('apgd-ce', 'apgd-dlr', 'fab', 'square', 'apgd-t', 'fab-t')
  assert {*names('plus')} == {*PARTS}


@pytest.mark.parametrize('wrong, message', [
    (dict(version='standart'), "version .*'standart'"), (dict(version='apgd-ce,fab-x'), "'fab-x'"),
    (dict(version=[]), 'version'), (dict(version=('apgd-ce', 'apgd-ce')), 'version .*once'),
    (dict(norm='l3'), "norm .*'l3'"), (dict(batch_size=0), 'batch_size .*0'),
    (dict(images=IMAGES[:0], labels=LABELS[:0]), r'images .*\(0, 6, 6, 1\)'),
    (dict(images=2 * IMAGES), r'images .*\[0, 1\]'),
    (dict(images=np.int32(IMAGES)), 'images .*int32'), (dict(labels=LABELS + 4), r'\[0, 4\]'),
    (dict(epsilon=-1.), 'epsilon .*-1'), (dict(epsilon=[0.1]), r'epsilon .*\(1,\)'),
    (dict(logits_fn=lambda x: NETWORK(x).argmax(-1)), 'logits_fn .*int'),
    (dict(logits_fn=lambda x: NETWORK(x)[:, :1]), r'logits_fn .*\(20, 1\)'),
])
def test_bad_arguments_are_named(wrong, message):
  arguments = dict(logits_fn=NETWORK, images=IMAGES, labels=LABELS, epsilon=0.1,
                   version='apgd-ce') | wrong
  with pytest.raises(ValueError, match=message) as error:
    attacks.autoattack(KEY, **arguments)
  assert '\n' not in str(error.value)


def test_epsilon_of_each_image_and_nothing_to_do():
  epsilon = np.where(np.arange(20) < 10, 0., 1.).astype(np.float32)
  result = attacks.autoattack(KEY, NETWORK, IMAGES, LABELS, epsilon=epsilon, version='apgd-ce')
  np.testing.assert_array_equal(result.success, epsilon > 0)
  wrong = attacks.autoattack(KEY, NETWORK, IMAGES, (LABELS + 1) % CLASSES, epsilon=0.1,
                             version='apgd-ce')
  assert wrong.success.all() and wrong.parts[0].robust_accuracy == 0
  np.testing.assert_array_equal(wrong.images, IMAGES)
