"""APGD: the published package's iterates, closed forms, and what it finds where PGD does not."""

import functools

import golden_attacks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from robust_jax import attacks, losses, smoothing
from robust_jax.attacks import apgd, objectives, threat_models

KEY = jax.random.key(5)
GOLDEN = np.load(golden_attacks.FILE)
IMAGES, LABELS, TARGETS = (jnp.asarray(GOLDEN[name]) for name in ('images', 'labels', 'targets'))
NETWORK = jax.tree_util.Partial(
    functools.partial(golden_attacks.network, np=jnp),
    {name: jnp.asarray(GOLDEN[f'weights/{name}']) for name in ('first', 'bias', 'second')})


@pytest.mark.parametrize('loss', ['cross_entropy', 'dlr', 'targeted_dlr'])
@pytest.mark.parametrize('norm', golden_attacks.RADII)
def test_it_goes_where_the_published_package_goes(norm, loss):
  victim, asked = smoothing.victim(NETWORK), []
  objective = objectives.cross_entropy if loss == 'cross_entropy' else objectives.dlr
  targets = TARGETS if loss == 'targeted_dlr' else None
  epsilon = jnp.full(len(IMAGES), golden_attacks.RADII[norm])

  def evaluate(x):
    io_callback(lambda x: asked.append(np.asarray(x)), None, x, ordered=True)

    def summed(x):
      logits = victim.logits(x)
      values = objective(logits, LABELS, targets)
      return jnp.sum(values), (values, smoothing.majority(logits) != LABELS)

    (_, (values, success)), gradient = jax.value_and_grad(summed, has_aux=True)(x)
    return values, gradient, success

  state = jax.jit(lambda start: apgd._ascend(
      evaluate, start, IMAGES, threat_models.make(norm, epsilon), golden_attacks.NUM_STEPS,
      at_random=False))(jnp.asarray(GOLDEN[f'{norm}/start']))
  jax.block_until_ready(state)
  jax.effects_barrier()
  expected = {name: GOLDEN[f'{norm}/{loss}/{name}'] for name in (
      'iterates', 'best', 'found', 'objective', 'success')}
  # The first image's l1 ways part on an edge between two rivals, where rounding decides.
  same = slice(1 if (norm, loss) == ('l1', 'dlr') else 0, None)
  iterates = np.stack([asked[step] for step in golden_attacks.KEPT])
  np.testing.assert_allclose(iterates[:, same], expected['iterates'][:, same], atol=1e-4)
  np.testing.assert_allclose(state.best[same], expected['best'][same], atol=1e-4)
  np.testing.assert_allclose(state.found[same], expected['found'][same], atol=1e-4)
  np.testing.assert_allclose(state.best_objective[same], expected['objective'][same], atol=1e-4)
  np.testing.assert_array_equal(state.success, expected['success'])


@pytest.mark.parametrize('norm, kwargs', [
    ('linf', {'loss': 'dlr'}), ('l2', {'loss': 'dlr', 'num_targets': 9}), ('l1', {}),
    ('l1', {'restarts': 2, 'larger_first': True})])
def test_it_stays_in_the_set_and_does_not_lose_to_pgd(norm, kwargs):
  epsilon = golden_attacks.RADII[norm] * np.linspace(0., 2., len(IMAGES)).astype(np.float32)
  attack = functools.partial(attacks.apgd_attack, KEY, NETWORK, IMAGES, LABELS, epsilon=epsilon,
                             norm=norm, num_steps=30, **kwargs)
  result = attack()
  assert (threat_models.norms(result.images - IMAGES, norm) <= epsilon * (1 + 1e-5) + 1e-6).all()
  assert (result.images >= 0).all() and (result.images <= 1).all()
  np.testing.assert_array_equal(result.success, NETWORK(result.images).argmax(-1) != LABELS)
  assert not result.undefined.any()
  pgd = attacks.pgd_attack(KEY, NETWORK, IMAGES, LABELS, epsilon=epsilon, norm=norm, num_steps=30)
  assert result.success.sum() >= pgd.success.sum()


def test_a_target_has_to_be_reached():
  result = attacks.apgd_attack(KEY, NETWORK, IMAGES, LABELS, epsilon=2., norm='l2', num_steps=30,
                               targets=TARGETS)
  np.testing.assert_array_equal(result.success, NETWORK(result.images).argmax(-1) == TARGETS)
  assert result.success.any()


def test_what_is_misclassified_already_stays():
  wrong = (LABELS + 1) % golden_attacks.CLASSES
  result = attacks.apgd_attack(KEY, NETWORK, IMAGES, wrong, epsilon=0.1, num_steps=5)
  np.testing.assert_array_equal(result.images, IMAGES)
  assert result.success.all()


@pytest.mark.parametrize('num_noise', [1, 3])
def test_the_smoothed_classifier_is_attacked_through_its_draws(num_noise):
  noise = smoothing.sample_noise(KEY, IMAGES, sigma=0.1, num_noise=num_noise)
  result = attacks.apgd_attack(KEY, NETWORK, IMAGES, LABELS, epsilon=0.1, num_steps=10, noise=noise)
  victim = smoothing.victim(NETWORK, noise)
  np.testing.assert_array_equal(result.success, victim.predict(result.images) != LABELS)


def test_dlr_by_its_formula():
  logits = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
  labels = np.arange(20) % 6
  targets = (labels + 1) % 6
  for row, y, t, found, towards in zip(
      logits, labels, targets, losses.dlr(logits, labels),
      losses.targeted_dlr(logits, labels, targets)):
    ordered = np.sort(row)[::-1]
    rival = np.delete(row, y).max()
    np.testing.assert_allclose(found, (rival - row[y]) / (ordered[0] - ordered[2]), rtol=1e-5)
    np.testing.assert_allclose(
        towards, (row[t] - row[y]) / (ordered[0] - (ordered[2] + ordered[3]) / 2), rtol=1e-5)


@pytest.mark.parametrize('classes', [2, 3])
def test_with_few_classes_dlr_is_a_difference_of_logits(classes):
  logits = np.random.default_rng(0).normal(size=(8, classes)).astype(np.float32)
  labels = np.arange(8) % classes
  targets = (labels + 1) % classes
  np.testing.assert_array_equal(losses.targeted_dlr(logits, labels, targets),
                                losses.targeted_logit_gap(logits, labels, targets))
  if classes == 2:
    np.testing.assert_array_equal(losses.dlr(logits, labels), losses.margin(logits, labels))


@pytest.mark.parametrize('kwargs, message', [
    (dict(loss='hinge'), "loss .*'hinge'"), (dict(num_steps=0), 'num_steps .*0'),
    (dict(restarts=0), 'restarts .*0'), (dict(num_targets=-1), 'num_targets .*-1'),
    (dict(norm='l3'), "norm .*'l3'"),
])
def test_bad_arguments_are_named(kwargs, message):
  with pytest.raises(ValueError, match=message):
    attacks.apgd_attack(KEY, NETWORK, IMAGES, LABELS, epsilon=0.1, **kwargs)


def test_a_gradient_that_is_not_finite_in_any_stage_is_marked():
  # Finite within l1 distance 0.3 of the images, which the first stages leave.
  def classifier(images):
    far = jnp.abs(images - IMAGES).reshape(len(images), -1).sum(-1) > 0.3
    logits = NETWORK(images)
    # sqrt at 0 * x: the value is 0, and its gradient infinity times 0.
    gate = jnp.sqrt(jnp.where(far, 0. * logits[:, 0], 1.))
    return logits + gate[:, None]

  result = attacks.apgd_attack(KEY, classifier, IMAGES, LABELS, epsilon=0.25, norm='l1',
                               num_steps=10, larger_first=True)
  alone = attacks.apgd_attack(KEY, classifier, IMAGES, LABELS, epsilon=0.25, norm='l1',
                              num_steps=10)
  assert result.undefined.any() and not alone.undefined.any()
  assert jnp.isfinite(result.images).all()
