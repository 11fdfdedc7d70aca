"""TRADES, MART, ARoW, stability, consistency, SmoothMix, MACER: against NumPy and each other."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tiny_training
from jax.test_util import check_grads

from launch import flags
from robust_jax import attacks, keys, models, smoothing
from robust_jax.attacks import objectives
from robust_jax.config import experiment, sections
from robust_jax.errors import UserError
from robust_jax.training import methods
from robust_jax.types import AttackResult, Progress

ROOT = Path(__file__).parents[1]
KEY = jax.random.key(5)
PROGRESS = Progress(jnp.asarray(30), jnp.asarray(2), jnp.asarray(2.5))
PGD = functools.partial(attacks.pgd_attack, random_start=False, norm='l2', num_steps=1,
                        step_ratio=1.)
KL = functools.partial(PGD, loss='kl')


def shift(key, logits_fn, images, labels, *, epsilon, noise=None):
  """An attack that does not look: so its images are known."""
  del key, logits_fn, labels, noise
  return AttackResult(images + epsilon, None, None)


# Each with the attack that leaves the parameters out of the inner problem.
METHODS = {
    'trades': functools.partial(methods.trades, attack=shift, epsilon=0.1),
    'mart': functools.partial(methods.mart, attack=shift, epsilon=0.1),
    'arow': functools.partial(methods.arow, attack=shift, epsilon=0.1),
    'stability': functools.partial(methods.stability, sigma=0.3),
    'consistency': functools.partial(methods.consistency, attack=shift, epsilon=0.1, sigma=0.3,
                                     num_noise=3),
    'smoothmix': functools.partial(methods.smoothmix, attack=shift, epsilon=0.4, sigma=0.3,
                                   num_noise=3, warmup_epochs=5),
    'macer': functools.partial(methods.macer, sigma=0.3, num_noise=5, beta=2.),
}


# ARoW is TRADES times a factor of MART's.
EACH = [name if name != 'arow' else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]


@pytest.fixture(scope='module')
def batch():
  return tiny_training.random_batch(16)


@pytest.fixture(scope='module')
def linear():
  """A linear network without BatchNorm, of logits of some size: (network, params)."""
  model = models.create('mlp', 3, hidden=())
  params = models.init(KEY, model, (4, 4, 1))['params']
  return models.network(model), jax.tree.map(lambda w: 3 * w, params)


run = functools.partial(tiny_training.run_method, progress=PROGRESS, key=KEY)


def log_probs(linear, images, scale=1.):
  """log softmax in float64."""
  network, params = linear
  logits = network.eval_logits({'params': params, 'batch_stats': {}})(jnp.asarray(images))
  return scipy.special.log_softmax(scale * np.asarray(logits, np.float64), axis=-1)


def noise_of(batch, use, num_noise, sigma=0.3):
  return smoothing.sample_noise(keys.fold_in(keys.fold_in(KEY, batch.index), use), batch.images,
                                sigma=sigma, num_noise=num_noise)


def of_label(values, batch):
  return np.take_along_axis(values, np.asarray(batch.labels)[:, None], axis=-1)[:, 0]


def close(found, expected, rtol=1e-4, atol=1e-6):
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


def test_trades_has_its_formula(linear, batch):
  output, _ = run(functools.partial(METHODS['trades'], beta=2.5), *linear, batch)
  clean, moved = log_probs(linear, batch.images), log_probs(linear, batch.images + 0.1)
  divergence = (np.exp(clean) * (clean - moved)).sum(-1)
  close(output.loss, -of_label(clean, batch) + 2.5 * divergence, rtol=1e-3, atol=1e-5)
  close(output.metrics['accuracy'], (moved.argmax(-1) == batch.labels).astype(float))
  close(output.metrics['clean_accuracy'], (clean.argmax(-1) == batch.labels).astype(float))


def test_mart_has_its_formula(linear, batch):
  output, _ = run(functools.partial(METHODS['mart'], beta=2.5), *linear, batch)
  expected, divergences, log_clean = [], [], log_probs(linear, batch.images)
  for y, clean, moved in zip(np.asarray(batch.labels), np.exp(log_clean),
                             np.exp(log_probs(linear, batch.images + 0.1))):
    divergences.append((1 - clean[y]) * (clean * np.log(clean / moved)).sum())
    expected.append(-np.log(moved[y]) - np.log(1.0001 - np.delete(moved, y).max())
                    + 2.5 * divergences[-1])
  close(output.loss, expected, rtol=1e-3, atol=1e-5)
  close(output.metrics['divergence'], divergences, rtol=1e-3, atol=1e-6)
  close(output.metrics['clean_accuracy'], (log_clean.argmax(-1) == batch.labels).astype(float))
  # Sure and wrong, the margin's term is -log 1e-4; sure and right, no term is left.
  sure = jax.tree.map(lambda w: 1e3 * w, linear[1])
  right = log_probs((linear[0], sure), batch.images + 0.1).argmax(-1) == batch.labels
  loss = run(functools.partial(METHODS['mart'], beta=0.), linear[0], sure, batch)[0].loss
  expected = -of_label(log_probs((linear[0], sure), batch.images + 0.1), batch)
  assert right.sum() > 2 and (~right).sum() > 2
  close(loss, expected + np.where(right, 0, -np.log(1e-4)), rtol=2e-3, atol=1e-2)


def test_arow_has_its_formula(linear, batch):
  output, _ = run(functools.partial(METHODS['arow'], weight=2.5), *linear, batch)
  clean, moved = log_probs(linear, batch.images), log_probs(linear, batch.images + 0.1)
  divergence = (1 - np.exp(of_label(moved, batch))) * (np.exp(clean) * (clean - moved)).sum(-1)
  close(output.loss, -0.8 * of_label(clean, batch) - 0.2 * clean.mean(-1) + 2.5 * divergence,
        rtol=1e-3, atol=1e-5)
  close(output.metrics['divergence'], divergence, rtol=1e-3, atol=1e-6)


def test_stability_has_its_formula(linear, batch):
  output, _ = run(METHODS['stability'], *linear, batch)
  noise = noise_of(batch, 0, 1)[0]
  clean, noisy = log_probs(linear, batch.images), log_probs(linear, batch.images + noise)
  close(output.loss, -of_label(clean, batch) - 2 * (np.exp(clean) * noisy).sum(-1))


def test_consistency_has_its_formula(linear, batch):
  output, _ = run(functools.partial(METHODS['consistency'], weight=3., eta=0.7), *linear, batch)
  each = np.stack([log_probs(linear, batch.images + 0.1 + n) for n in noise_of(batch, 1, 3)])
  mean = np.exp(each).mean(0)
  divergence = (mean * (np.log(mean) - each)).sum(-1).mean(0)
  entropy = -(mean * np.log(mean)).sum(-1)
  cross_entropy = -np.mean([of_label(one, batch) for one in each], axis=0)
  close(output.loss, cross_entropy + 3 * divergence + 0.7 * entropy)


@pytest.mark.parametrize('one_step', [0., pytest.param(0.2, marks=pytest.mark.slow)])
def test_smoothmix_has_its_formula(one_step, linear, batch):
  output, _ = run(functools.partial(METHODS['smoothmix'], weight=3., one_step=one_step), *linear,
                  batch)
  noise, x, attacked = noise_of(batch, 1, 3), np.asarray(batch.images), batch.images + 0.4
  if one_step:  # In epoch 2, the third of five, by 0.6 times that.
    network, params = linear
    x = attacks.fgsm(KEY, network.eval_logits({'params': params, 'batch_stats': {}}), batch.images,
                     batch.labels, epsilon=0.12, noise=noise, norm='l2').images
    assert np.linalg.norm((x - batch.images).reshape(16, -1), axis=-1).max() > 0.11
  each = np.stack([log_probs(linear, x + n) for n in noise])
  mean = np.exp(each).mean(0)
  use = keys.fold_in(keys.fold_in(KEY, batch.index), 3)
  share = 0.5 * np.array([jax.random.uniform(key) for key in use], np.float64)
  assert share.max() < 0.5 and np.ptp(share) > 0.3
  mixed = x + share[:, None, None, None] * (attacked - x)
  target = (1 - share[:, None]) * mean + share[:, None] / 3
  each_mixed = np.stack([log_probs(linear, mixed + n) for n in noise])
  divergence = (target * (np.log(target) - each_mixed)).sum(-1).mean(0)
  right = mean.argmax(-1) == batch.labels
  assert 2 < right.sum() < 14
  cross_entropy = -np.mean([of_label(one, batch) for one in each], axis=0)
  close(output.loss, cross_entropy + 3 * 0.6 * right * divergence, rtol=1e-3, atol=1e-5)
  close(output.metrics['divergence'], right * divergence, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_the_steps_of_smoothmix_never_leave_their_ball(linear, batch):
  # T steps of length epsilon / T: they go on where a ball would hold the steps of SmoothAdv.
  attack = functools.partial(PGD, num_steps=3, order='ball_only')
  network, params = linear
  logits_fn = network.eval_logits({'params': params, 'batch_stats': {}})
  noise = noise_of(batch, 0, 2)
  x, images = np.asarray(batch.images, np.float64), batch.images
  victim = smoothing.victim(logits_fn, noise)
  for _ in range(3):
    g = np.asarray(jax.grad(lambda x: victim.objective(
        objectives.cross_entropy, batch.labels)(x).sum())(jnp.asarray(x, jnp.float32)))
    x = x + 0.2 * g / np.linalg.norm(g.reshape(16, -1), axis=-1)[:, None, None, None]
  found = attack(KEY, logits_fn, images, batch.labels, epsilon=0.6, noise=noise).images
  close(found, x, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('gamma', [0.4, 8.])
def test_macer_has_its_formula(gamma, linear, batch):
  sure = batch._replace(labels=batch.labels.at[:8].set(
      log_probs(linear, batch.images)[:8].argmax(-1)))
  output, _ = run(functools.partial(METHODS['macer'], weight=5., gamma=gamma), *linear, sure)
  noise = noise_of(sure, 0, 5)
  plain = np.mean([np.exp(log_probs(linear, sure.images + n)) for n in noise], axis=0)
  votes = np.mean([np.exp(log_probs(linear, sure.images + n, 2.)) for n in noise], axis=0)
  expected, counted = [], []
  for y, p, q in zip(np.asarray(sure.labels), plain, votes):
    xi = scipy.stats.norm.ppf(q[y]) - scipy.stats.norm.ppf(np.delete(q, y).max())
    counted.append(q.argmax() == y and np.isfinite(xi) and abs(xi) <= gamma)
    expected.append(-np.log(p[y] + 1e-10) + counted[-1] * 5 * 0.15 * max(0, gamma - xi))
  assert 0 < sum(counted) < sum(votes.argmax(-1) == sure.labels) or gamma == 8
  close(output.loss, expected, rtol=1e-3)


def test_macer_leaves_out_what_is_not_finite_or_large_enough(linear, batch):
  # Where all copies are sure, xi is infinite: the loss is that without the second term.
  network, params = linear
  sure = batch._replace(labels=jnp.asarray(log_probs(linear, batch.images).argmax(-1)))
  scaled = jax.tree.map(lambda w: 1e3 * w, params)
  with_term, gradient = run(METHODS['macer'], network, scaled, sure)
  without, expected = run(functools.partial(METHODS['macer'], weight=0.), network, scaled, sure)
  votes = np.mean([log_probs((network, scaled), sure.images + n, 2.).argmax(-1) == sure.labels
                   for n in noise_of(sure, 0, 5)], axis=0)
  assert (votes == 1).sum() > 3
  close(with_term.loss[votes == 1], without.loss[votes == 1])
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, expected)))
  np.testing.assert_array_equal(with_term.metrics['soft_radius'][votes == 1], 0)


def test_macers_second_term_can_begin_later(linear, batch):
  kwargs = dict(start_epoch=3)
  early, _ = run(functools.partial(METHODS['macer'], **kwargs), *linear, batch)
  late, _ = run(functools.partial(METHODS['macer'], **kwargs), *linear, batch,
                progress=Progress(jnp.asarray(40), jnp.asarray(3), jnp.asarray(3.5)))
  close(early.loss, run(functools.partial(METHODS['macer'], weight=0.), *linear, batch)[0].loss)
  close(late.loss, run(METHODS['macer'], *linear, batch)[0].loss)
  assert np.mean(late.loss) > np.mean(early.loss)


@pytest.mark.parametrize('method', [
    functools.partial(METHODS['trades'], beta=0.),
    functools.partial(methods.trades, attack=KL, epsilon=0.),
    functools.partial(methods.trades, attack=attacks.no_attack, epsilon=0.1),
    functools.partial(METHODS['arow'], weight=0., label_smoothing=0.),
    functools.partial(METHODS['stability'], weight=0.),
    functools.partial(methods.consistency, attack=attacks.no_attack, epsilon=0., sigma=0., eta=0.),
    functools.partial(methods.smoothmix, attack=attacks.no_attack, epsilon=0., sigma=0., weight=0.),
    functools.partial(methods.macer, sigma=0., num_noise=2),
])
def test_without_their_terms_they_are_standard_training(method, linear, batch):
  found, gradient = run(method, *linear, batch)
  expected, expected_gradient = run(methods.standard, *linear, batch)
  close(found.loss, expected.loss, rtol=1e-3)
  close(gradient, expected_gradient, rtol=1e-3, atol=1e-5)


def test_consistency_without_its_terms_is_smoothadv(linear, batch):
  for attack in (attacks.no_attack, PGD):
    kwargs = dict(attack=attack, epsilon=0.4, sigma=0.3, num_noise=2, label_smoothing=0.1,
                  epsilon_warmup_epochs=4)
    found, gradient = run(functools.partial(methods.consistency, weight=0., eta=0., **kwargs),
                          *linear, batch)
    expected, expected_gradient = run(functools.partial(methods.smoothadv, **kwargs), *linear,
                                      batch)
    close((found.loss, gradient), (expected.loss, expected_gradient), atol=1e-5)
    close(found.metrics['accuracy'], expected.metrics['accuracy'])
    close(found.metrics['epsilon'], np.full(16, 0.3))


def test_the_inner_attack_of_trades_raises_the_divergence(linear, batch):
  trades = functools.partial(methods.trades, epsilon=0.3)
  found, _ = run(functools.partial(trades, attack=KL), *linear, batch)
  for other in (attacks.no_attack, functools.partial(KL, random_start=True, num_steps=0)):
    weaker, _ = run(functools.partial(trades, attack=other), *linear, batch)
    assert (found.metrics['divergence'] >= weaker.metrics['divergence'] - 1e-6).all()
  assert (found.metrics['divergence'] > 1e-3).all()


def test_trades_refuses_an_attack_of_another_loss(linear, batch):
  with pytest.raises(ValueError, match="attack must have the loss 'kl', got 'cross_entropy'"):
    run(functools.partial(methods.trades, attack=PGD, epsilon=0.1), *linear, batch)


def test_trades_raises_the_divergence_from_where_its_gradient_is_zero(linear, batch):
  # The sign of a zero gradient is zero: without a start beside the image, linf does not move.
  attack = functools.partial(KL, norm='linf')
  found, _ = run(functools.partial(methods.trades, epsilon=0.1, attack=attack), *linear, batch)
  assert (found.metrics['divergence'] > 1e-3).all()


def test_trades_has_the_gradient_at_its_attacked_images(linear, batch):
  network, params = linear
  attack = functools.partial(KL, num_steps=2)
  attacked = jax.jit(lambda: attack(
      keys.fold_in(keys.fold_in(KEY, batch.index), 0),
      network.eval_logits({'params': params, 'batch_stats': {}}), batch.images, batch.labels,
      epsilon=0.3).images)()
  fixed = lambda *args, **kwargs: AttackResult(attacked, None, None)
  found, gradient = run(functools.partial(methods.trades, epsilon=0.3, attack=attack), *linear,
                        batch)
  expected, expected_gradient = run(functools.partial(methods.trades, epsilon=0.3, attack=fixed),
                                    *linear, batch)
  close((found.loss, gradient), (expected.loss, expected_gradient), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize('name', ['trades', 'mart', 'arow', 'consistency'])
def test_the_radius_warms_up(name, linear, batch):
  # In epoch 2, the third of five.
  found, _ = run(functools.partial(METHODS[name], epsilon_warmup_epochs=5), *linear, batch)
  expected, _ = run(functools.partial(METHODS[name], epsilon=0.06), *linear, batch)
  full, _ = run(METHODS[name], *linear, batch)
  close(found.loss, expected.loss, rtol=1e-3, atol=1e-5)
  close(found.metrics['epsilon'], np.full(16, 0.06))
  assert np.abs(found.loss - full.loss).max() > 1e-3


@pytest.mark.parametrize('name', EACH)
def test_gradients_are_those_of_finite_differences(name, linear, batch):
  # Parameters of another dtype or order of size would hide a wrong scale.
  def loss(params):
    return jnp.mean(METHODS[name](keys.fold_in(KEY, batch.index), linear[0], params, {}, batch,
                                  PROGRESS).loss)

  # SmoothMix jumps where the mean prediction changes its class.
  check_grads(jax.jit(loss), (linear[1],), order=1, modes=['rev'], rtol=2e-2, atol=2e-3,
              eps=1e-3 if name == 'smoothmix' else 1e-2)


@pytest.mark.parametrize('scale', [0., 1e3])
@pytest.mark.parametrize('name', EACH)
def test_finite_at_saturated_logits_and_at_none(name, scale, linear, batch):
  params = jax.tree.map(lambda w: scale * w, linear[1])
  assert scale == 0 or np.ptp(log_probs((linear[0], params), batch.images), axis=-1).max() > 1e3
  output, gradient = run(METHODS[name], linear[0], params, batch)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((output, gradient)))
  if scale and name != 'macer':
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize('name', EACH)
def test_an_example_does_not_depend_on_its_batch(name, linear, batch):
  method = METHODS[name]
  if 'attack' in method.keywords:
    method = functools.partial(method, attack=functools.partial(KL, random_start=True))

  @jax.jit
  def apply(batch):
    return method(keys.fold_in(KEY, batch.index), *linear, {}, batch, PROGRESS).loss

  together = apply(batch)
  order = np.random.default_rng(3).permutation(16)
  for rows in (order, *order[:4, None]):
    close(apply(jax.tree.map(lambda x, rows=rows: x[rows], batch)), together[rows], rtol=1e-3,
          atol=1e-5)


@pytest.mark.parametrize('name, rows', [
    ('trades', 32), ('mart', 32), ('arow', 32), ('stability', 32), ('consistency', 48),
    ('smoothmix', 96), ('macer', 80)])
def test_batch_norm_sees_all_copies_together(name, rows, batch):
  model, variables = tiny_training.small_net(KEY)
  network, seen = models.network(model), []
  spy = network._replace(train_logits=lambda p, s, x, k: (
      seen.append((x.shape, k.shape)), network.train_logits(p, s, x, k))[1])
  output, _ = run(METHODS[name], spy, variables['params'], batch,
                  batch_stats=variables['batch_stats'])
  assert seen == [((rows, 4, 4, 1), (rows,))]
  assert np.abs(output.batch_stats['norm']['mean']).max() > 0


def test_label_smoothing_is_of_the_cross_entropy(linear, batch):
  for name in ('trades', 'stability', 'consistency'):
    plain, _ = run(METHODS[name], *linear, batch)
    smooth, _ = run(functools.partial(METHODS[name], label_smoothing=0.3), *linear, batch)
    if name == 'consistency':
      each = [log_probs(linear, batch.images + 0.1 + n) for n in noise_of(batch, 1, 3)]
    else:
      each = [log_probs(linear, batch.images)]
    change = np.mean([0.3 * (of_label(one, batch) - one.mean(-1)) for one in each], axis=0)
    close(smooth.loss - plain.loss, change, rtol=1e-3, atol=1e-4)


def build(*words):
  config = flags.parse(['launch', *words]).config
  return experiment.build(sections.resolve(config), jax.devices()[:2])


@pytest.mark.parametrize('config', ['stability', 'consistency', 'macer', 'iaat_smoothadv'])
def test_no_noise_is_refused_before_training(config, monkeypatch):
  monkeypatch.chdir(ROOT)
  message = rf"^config.sigma .*'{config}' must be a number in \(0, inf\), got 0.0$"
  with pytest.raises(UserError, match=message):
    build(f'--config=configs/digits.py:{config}', '--config.sigma=0.0')
  with pytest.raises(UserError, match=r'^config.method.sigma must be .*\(0, inf\), got 0.0'):
    build(f'--config=configs/digits.py:{config}', '--config.method.sigma=0.0')
  # The method's own noise is enough: certification may have another.
  run = build(f'--config=configs/digits.py:{config}', '--config.sigma=0.0',
              '--config.method.sigma=0.5')
  assert run.method.keywords['sigma'] == 0.5 and run.sigma == 0


@pytest.mark.parametrize('words, message', [
    (['digits.py:consistency', '--config.method.num_noise=1'],
     r'config.method.num_noise must be .*\[2, inf\), got 1'),
    (['digits.py:trades', '--config.method.attack.target=random'],
     "config.method.attack.target must be 'none' .* got 'random'"),
    (['digits.py:macer', '--config.method.beta=0.0'], 'config.method.beta .* got 0.0'),
    (['digits.py:iaat', '--config.method.variant=mine'],
     "config.method.variant must be one of official, algorithm1, simple, got 'mine'"),
])
def test_what_does_not_go_together_is_one_line(words, message, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(UserError, match=message) as raised:
    build(f'--config=configs/{words[0]}', *words[1:])
  assert '\n' not in str(raised.value)
