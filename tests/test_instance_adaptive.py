"""Radii of each example: the rule against NumPy, order, padding, devices, resume, the report."""

import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_training
from jax.test_util import check_grads
from test_report import read_page

from launch import flags
from robust_jax import attacks, data, keys, models, training
from robust_jax import report as reports
from robust_jax.config import experiment, sections
from robust_jax.devices import parallel
from robust_jax.errors import UserError
from robust_jax.stages import STAGES, memory
from robust_jax.training import methods
from robust_jax.types import AttackResult, Batch, Network, Progress
from robust_jax.workdir import checkpoint

ROOT = Path(__file__).parents[1]
KEY = jax.random.key(5)
LATE = Progress(jnp.asarray(99), jnp.asarray(7), jnp.asarray(7.5))
EARLY = Progress(jnp.asarray(9), jnp.asarray(2), jnp.asarray(2.5))
VARIANTS = ('official', 'algorithm1', 'simple')
RULE = dict(gamma=0.1, beta=0.25, warmup_epochs=3, warmup_epsilon=0.2)
PGD = functools.partial(attacks.pgd_attack, random_start=False, norm='l2', num_steps=1,
                        step_ratio=1.)
BOTH = pytest.mark.parametrize('method', [
    methods.iaat, functools.partial(methods.iaat_smoothadv, sigma=0.1, num_noise=2)])


def shift(key, logits_fn, images, labels, *, epsilon, noise=None):
  """An attack of known effect: class 1 becomes darker by epsilon, class 0 brighter."""
  del key, logits_fn, noise
  change = jnp.where(labels == 1, -1, 1) * epsilon
  return AttackResult(images + change.reshape(-1, 1, 1, 1), None, None)


def bright_logits(bias, images):
  """Class 1 where the mean is above 0.5 + bias."""
  margin = images.mean((1, 2, 3)) - 0.5 - bias
  return jnp.stack([-2 * margin, 2 * margin], axis=-1)


BRIGHT = Network(
    eval_logits=lambda variables: jax.tree_util.Partial(bright_logits, variables['params']['bias']),
    train_logits=lambda params, stats, images, key: (bright_logits(params['bias'], images), stats))
PARAMS = {'bias': jnp.asarray(0.03)}


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  images = np.clip(rng.uniform(size=(16, 1, 1, 1)) + 0.02 * rng.normal(size=(16, 4, 4, 1)), 0, 1)
  labels = np.where(rng.random(16) < 0.8, images.mean((1, 2, 3)) > 0.53, rng.integers(0, 2, 16))
  return Batch(images=jnp.asarray(images, jnp.float32), labels=jnp.asarray(labels, jnp.int32),
               index=jnp.asarray(rng.permutation(40)[:16], jnp.int32), mask=jnp.ones(16))


@pytest.fixture(scope='module')
def linear():
  """A linear network of 4x4 images: (network, params)."""
  model = models.create('mlp', 2, hidden=())
  return models.network(model), models.init(KEY, model, (4, 4, 1))['params']


@pytest.fixture(scope='module')
def radius():
  return jnp.asarray(np.random.default_rng(1).choice([0., 0.02, 0.1, 0.3], 16), jnp.float32)


def run(method, network, params, batch, radius, progress=LATE, key=KEY, **kwargs):
  """The method's output and the gradient of its mean loss."""
  return tiny_training.run_method(
      functools.partial(method, **{**RULE, **kwargs}), network, params,
      batch._replace(aux={'radius': radius}), progress=progress, key=key)


def expected_rule(batch, radius, variant, epoch, *, gamma, beta, warmup_epochs, warmup_epsilon):
  """(radius stored, radius attacked at, image trained on is attacked), in float64."""
  sign = np.where(np.asarray(batch.labels) == 1, 1., -1.)
  margin = sign * (np.asarray(batch.images, np.float64).mean((1, 2, 3)) - 0.53)
  right = lambda epsilon: margin - epsilon > 0
  radius, clean = np.asarray(radius, np.float64), right(0)
  if variant == 'simple':
    if epoch < warmup_epochs:
      return np.full(16, warmup_epsilon), np.full(16, warmup_epsilon), np.ones(16, bool)
    return np.maximum(radius + np.where(right(radius), gamma, -gamma), 0), radius, np.ones(16, bool)
  if epoch < warmup_epochs:
    new = warmup_epsilon * (clean if variant == 'official' else np.ones(16))
  else:
    target = np.array([e + gamma if m > e + gamma else e if m > e else e - gamma
                       for m, e in zip(margin, radius)])
    if variant == 'official':
      target = target * clean
    new = (1 - beta) * radius + beta * np.maximum(target, 0)
  return new, new, clean if variant == 'algorithm1' else np.ones(16, bool)


@pytest.mark.parametrize('progress', [EARLY, LATE])
@pytest.mark.parametrize('variant', VARIANTS)
def test_the_rule_and_the_loss_are_those_of_numpy(variant, progress, batch, radius):
  stored, attacked_at, attacked = expected_rule(batch, radius, variant, int(progress.epoch), **RULE)
  output, _ = run(methods.iaat, BRIGHT, PARAMS, batch, radius, progress, attack=shift,
                  variant=variant)
  np.testing.assert_allclose(output.memory['radius'], stored, atol=1e-6)
  np.testing.assert_allclose(output.metrics['epsilon'], attacked_at, atol=1e-6)
  sign = np.where(np.asarray(batch.labels) == 1, 1., -1.)
  mean = np.asarray(batch.images, np.float64).mean((1, 2, 3)) - sign * attacked_at * attacked
  np.testing.assert_allclose(output.loss, np.log1p(np.exp(-4 * sign * (mean - 0.53))), rtol=1e-4)
  # The cases are all there.
  if progress is LATE:
    assert (stored > radius).any() and (stored < radius).any() and not attacked.all() ^ (
        variant != 'algorithm1')


@pytest.mark.parametrize('variant', ['official', 'simple'])
def test_radii_that_do_not_move_are_adversarial_training(variant, linear, batch, radius):
  kwargs = dict(beta=0.) if variant == 'official' else dict(gamma=0.)
  found, gradient = run(methods.iaat, *linear, batch, radius, attack=PGD, variant=variant, **kwargs)
  np.testing.assert_allclose(found.memory['radius'], radius)

  def loss(params):
    output = methods.adversarial(keys.fold_in(KEY, batch.index), linear[0], params, {}, batch, LATE,
                                 attack=functools.partial(at_radius, radius), epsilon=0.)
    return jnp.mean(output.loss), output.loss

  expected_gradient, expected = jax.grad(loss, has_aux=True)(linear[1])
  np.testing.assert_allclose(found.loss, expected, rtol=1e-5)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), gradient,
               expected_gradient)


def at_radius(radius, key, logits_fn, images, labels, *, epsilon):
  del epsilon
  return PGD(key, logits_fn, images, labels, epsilon=radius)


def test_smoothed_without_noise_is_iaat(linear, batch, radius):
  plain, _ = run(methods.iaat, *linear, batch, radius, attack=PGD)
  smoothed, _ = run(methods.iaat_smoothadv, *linear, batch, radius, attack=PGD, sigma=0.,
                    num_noise=3)
  np.testing.assert_allclose(smoothed.memory['radius'], plain.memory['radius'], atol=1e-6)
  np.testing.assert_allclose(smoothed.loss, plain.loss, rtol=1e-4)
  np.testing.assert_array_equal(smoothed.metrics['clean_accuracy'],
                                plain.metrics['clean_accuracy'])


def test_attacks_and_loss_see_the_same_noise(batch, radius):
  seen = []

  def spy(key, logits_fn, images, labels, *, epsilon, noise):
    jax.debug.callback(lambda n, e: seen.append((n, e)), noise, epsilon)
    return shift(key, logits_fn, images, labels, epsilon=epsilon)

  output, _ = run(methods.iaat_smoothadv, BRIGHT, PARAMS, batch, radius, attack=spy, sigma=0.2,
                  num_noise=3)
  jax.effects_barrier()
  noise = np.asarray(seen[0][0], np.float64)
  assert len(seen) == 3 and all((n == seen[0][0]).all() for n, _ in seen)
  np.testing.assert_allclose(np.std(noise), 0.2, rtol=0.1)
  # The radii by the mean probability of the three copies, and the mean loss of them, in NumPy.
  sign = np.where(np.asarray(batch.labels) == 1, 1., -1.)
  margins = sign * (np.asarray(batch.images, np.float64) + noise).mean((2, 3, 4)) - 0.53 * sign
  right = lambda epsilon: (1 / (1 + np.exp(-4 * (margins - epsilon)))).mean(0) > 0.5
  old = np.asarray(radius, np.float64)
  target = np.where(right(old + 0.1), old + 0.1, np.where(right(old), old, old - 0.1))
  new = 0.75 * old + 0.25 * np.maximum(target * right(0), 0)
  np.testing.assert_allclose(output.memory['radius'], new, atol=1e-6)
  np.testing.assert_allclose(output.loss, np.log1p(np.exp(-4 * (margins - new))).mean(0), rtol=1e-4)


def test_radii_do_not_depend_on_how_classes_are_numbered(batch, radius):
  # So much noise that two copies often disagree; nothing but the classes' numbers is exchanged.
  turned = BRIGHT._replace(
      eval_logits=lambda variables: lambda images: BRIGHT.eval_logits(variables)(images)[:, ::-1],
      train_logits=lambda params, stats, images, key: (
          bright_logits(params['bias'], images)[:, ::-1], stats))
  smoothed = functools.partial(methods.iaat_smoothadv, attack=attacks.no_attack, sigma=2.,
                               num_noise=2)
  found, _ = run(smoothed, BRIGHT, PARAMS, batch, radius)
  again, _ = run(smoothed, turned, PARAMS, batch._replace(labels=1 - batch.labels), radius)
  np.testing.assert_allclose(again.memory['radius'], found.memory['radius'])
  assert np.mean(found.metrics['accuracy'] == 0.5) > 0.2


@BOTH
def test_gradients_are_those_of_finite_differences(method, batch, radius):
  def loss(bias):
    return jnp.mean(method(keys.fold_in(KEY, batch.index), BRIGHT, {'bias': bias}, {},
                           batch._replace(aux={'radius': radius}), LATE, attack=shift, **RULE).loss)

  check_grads(loss, (jnp.asarray(0.03),), order=1, modes=['rev'], eps=1e-3, rtol=1e-2)


@BOTH
def test_logits_that_are_nan_withstand_nothing(method, batch, radius):
  output, _ = run(method, BRIGHT, {'bias': jnp.nan}, batch, radius, attack=shift,
                  variant='algorithm1')
  np.testing.assert_array_equal(output.metrics['clean_accuracy'], 0)
  np.testing.assert_allclose(output.memory['radius'],
                             0.75 * radius + 0.25 * jnp.maximum(radius - 0.1, 0), atol=1e-6)


@BOTH
@pytest.mark.parametrize('scale', [0., 1e4])
def test_finite_at_saturated_logits_and_zero_gradients(scale, method, linear, batch, radius):
  params = jax.tree.map(lambda w: scale * w, linear[1])
  output, gradient = run(method, linear[0], params, batch, radius, attack=PGD)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((output, gradient)))


@BOTH
def test_an_example_does_not_depend_on_its_batch(method, linear, batch, radius):
  attack = functools.partial(PGD, random_start=True)

  @jax.jit
  def apply(batch, radius):
    output = method(keys.fold_in(KEY, batch.index), linear[0], linear[1], {},
                    batch._replace(aux={'radius': radius}), LATE, attack=attack, **RULE)
    return output.loss, output.memory['radius']

  together = apply(batch, radius)
  order = np.random.default_rng(3).permutation(16)
  for rows in (order, *order[:5, None]):
    found = apply(jax.tree.map(lambda x, rows=rows: x[rows], batch), radius[rows])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), found,
                 jax.tree.map(lambda x, rows=rows: x[rows], together))


def test_steps_have_a_floor(linear, batch):
  logits_fn = linear[0].eval_logits({'params': linear[1], 'batch_stats': {}})
  images = jnp.full_like(batch.images, 0.5)
  attack = functools.partial(attacks.pgd_attack, norm='linf', num_steps=1, step_ratio=0.5,
                             min_step_size=0.02, random_start=False)
  epsilon = jnp.linspace(0, 0.15, 16)
  moved = attack(KEY, logits_fn, images, batch.labels, epsilon=epsilon).images - images
  expected = np.minimum(np.maximum(0.5 * epsilon, 0.02), epsilon)
  np.testing.assert_allclose(jnp.abs(moved).max((1, 2, 3)), expected, atol=1e-6)


@pytest.mark.parametrize('num_devices', [1, 2, 8])
def test_radii_follow_their_examples_through_shuffled_epochs(num_devices):
  rng = np.random.default_rng(2)
  levels = rng.integers(100, 256, (21, 1, 1, 1)).astype(np.uint8)
  dataset = data.Dataset(
      name='made up', split='train', images=np.broadcast_to(levels, (21, 4, 4, 1)).copy(),
      labels=np.ones(21, np.int32), class_names=('dark', 'bright'), mean=0., std=1.)
  rule = dict(gamma=0.1, beta=0.25, warmup_epochs=1, warmup_epsilon=0.05)
  method = functools.partial(methods.iaat, attack=shift, variant='algorithm1', **rule)
  optimizer = training.OPTIMIZERS['sgd'](0.)
  step = parallel.map_train_step(
      functools.partial(training.train_step, network=BRIGHT, optimizer=optimizer, method=method,
                        steps_per_epoch=3, axis_name=parallel.AXIS), jax.devices()[:num_devices])
  state = training.create_state({'params': PARAMS, 'batch_stats': {}}, optimizer,
                                memory={'radius': jnp.zeros(21)})
  for batch in data.train_batches(dataset, batch_size=8, seed=3, num_steps=12):
    state, _ = step(state, batch, KEY)
  margin = levels[:, 0, 0, 0] / 255 - 0.53
  expected = np.full(21, 0.05)
  for _ in range(3):
    target = np.where(margin > expected + 0.1, expected + 0.1,
                      np.where(margin > expected, expected, expected - 0.1))
    expected = 0.75 * expected + 0.25 * np.maximum(target, 0)
  np.testing.assert_allclose(state.memory['radius'], expected, atol=1e-6)
  assert len(np.unique(expected.round(6))) == 4
  for shard in state.memory['radius'].addressable_shards:
    np.testing.assert_array_equal(shard.data, state.memory['radius'])


def build(*words, method='iaat'):
  """A Run of a small network on digits with a method of configs/digits.py."""
  iaat = ('--config.method.attack.num_steps=1', '--config.method.warmup_epochs=1',
          '--config.train.num_epochs=3.0', '--config.train.checkpoint_every=1000',
          '--config.evaluation.gallery=3') if method == 'iaat' else ()
  words = [f'--config={ROOT}/configs/digits.py:{method}', '--config.model.widths=(4,)',
           '--config.model.dense=8', *iaat, *words]
  return experiment.build(sections.resolve(flags.parse(['launch', *words]).config),
                          jax.devices()[:2])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  whole = tmp_path_factory.mktemp('whole')
  STAGES['train'](build(), whole)
  return whole


def test_radii_after_a_resume_are_the_same_bits(trained, tmp_path):
  STAGES['train'](build('--config.train.num_steps=37'), tmp_path)  # In the midst of an epoch.
  STAGES['train'](build(), tmp_path)
  with np.load(trained / 'radii.npz') as one, np.load(tmp_path / 'radii.npz') as two:
    assert one.files == two.files
    for name in one.files:
      np.testing.assert_array_equal(one[name], two[name])
    dataset = data.load('digits', 'train')
    np.testing.assert_array_equal(one['index'], np.arange(dataset.num_examples))
    np.testing.assert_array_equal(one['label'], dataset.labels)
    radius = one['radius']
    assert len(np.unique(radius)) > 5 and radius.min() < radius.max()
    assert (radius[one['shown'][:3]] == np.sort(radius)[:3]).all()
    assert (radius[one['shown'][3:]] == np.sort(radius)[:-4:-1]).all()
    np.testing.assert_array_equal(one['images'], dataset.images[one['shown']] / np.float32(255))


def test_radii_are_taken_over_for_the_same_examples_alone(trained, tmp_path, capsys):
  same = build(f'--config.weights={trained}')
  with np.load(trained / 'radii.npz') as saved:
    np.testing.assert_array_equal(memory.initial(same)['radius'], saved['radius'])
  assert re.fullmatch(f'train: the radius of each example is that of {trained}(, until .*)?\n',
                      capsys.readouterr().out)
  known = shutil.copytree(trained, tmp_path / 'known')
  (known / 'stages.json').write_text(json.dumps({'train': {'config': same.config}}))
  other_norm = build(f'--config.weights={known}', '--config.method.attack.norm=l2')
  fewer = build(f'--config.weights={trained}', '--config.data.train_split=train[:50%]')
  other = build(f'--config.weights={trained}')
  labels = np.roll(other.train_data.labels, 1)
  object.__setattr__(other, 'train_data', dataclasses.replace(other.train_data, labels=labels))
  new = build(f'--config.weights={trained}', '--config.new_head=True')
  for run, num, why in (
      (fewer, 721, r"1442 examples of 'digits' \(labels \w+\), .* 721 examples"),
      (other, 1442, r'1442 examples of .* 1442 examples of .*'),
      (other_norm, 1442, 'norm linf, .* l2'), (new, 1442, 'config.new_head')):
    np.testing.assert_array_equal(memory.initial(run)['radius'], np.zeros(num))
    line = capsys.readouterr().out
    assert re.fullmatch(rf'train: the radius of each example begins anew: .*{why}.*\n', line), line
  plain = tmp_path / 'plain'
  plain.mkdir()
  STAGES['train'](build('--config.train.num_steps=1', method='pgd'), plain)
  capsys.readouterr()
  memory.initial(build(f'--config.weights={plain}'))
  assert capsys.readouterr().out == (
      f'train: the radius of each example begins anew: {plain} has none\n')
  # Within a training they cannot change.
  with pytest.raises(UserError, match=r'step_\d+ .* 1442 examples .* 721 .*--redo=train'):
    STAGES['train'](build('--config.data.train_split=train[:50%]'), trained)
  # A method without radii has nothing to compare.
  assert memory.initial(build(f'--config.weights={trained}',
                              '--config.data.train_split=train[:50%]', method='pgd')) == {}


def test_a_damaged_memory_is_one_line(trained, monkeypatch):
  monkeypatch.setattr(checkpoint, 'find_damage', lambda workdir, step: 'a bit')
  with pytest.raises(UserError, match='is damaged .a bit.'):
    checkpoint.read(trained, checkpoint.latest_step(trained))


@pytest.mark.parametrize('largest, factor, digits', [(0.3, 1, 3), (8 / 255, 255, 2)])
def test_the_report_shows_the_radii(trained, largest, factor, digits, tmp_path):
  place = shutil.copytree(trained, tmp_path / 'run')
  with np.load(place / 'radii.npz') as saved:
    arrays = dict(saved)
  arrays['radius'] *= largest / arrays['radius'].max()
  np.savez(place / 'radii.npz', **arrays)
  reports.build(place)
  page = read_page(place)
  assert 'radii' in page.ids and 'Smallest radii' in page.text
  assert ('radii, in 255ths, by class' in page.text) == ('radius, in 255ths' in page.text) == (
      factor == 255)
  images = [attrs['alt'] for tag, attrs in page.tags if tag == 'img']
  with np.load(place / 'radii.npz') as saved:
    radius, label = saved['radius'], saved['label']
    assert images == [f'training image {index}' for index in saved['shown']]
  lines = (place / 'tables' / 'radii.csv').read_text().splitlines()
  assert lines[0] == 'class,images,at 0 (%),10%,50%,90%,100%'
  for line, of in ((lines[1], label >= 0), (lines[4], label == 2)):
    quantiles = [f'{factor * value:.{digits}f}'
                 for value in np.quantile(radius[of], (0.1, 0.5, 0.9, 1))]
    assert line.split(',')[1] == str(of.sum()) and line.split(',')[3:] == quantiles


def test_the_report_of_equal_l2_radii_and_no_pictures(tmp_path):
  np.savez(tmp_path / 'radii.npz', index=np.arange(4), label=np.array([0, 1, 1, 0]),
           radius=np.zeros(4, np.float32), shown=np.zeros(0, int), images=np.zeros((0, 2, 2, 1)),
           norm='l2')
  reports.build(tmp_path)
  page = read_page(tmp_path)
  assert '100.0% of the images have radius 0' in page.text and 'ℓ₂ radius' in page.text
  assert 'Smallest' not in page.text and 'nan' not in page.text
