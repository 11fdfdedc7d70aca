"""Attacks: closed forms on linear models, exact degenerate cases, and shared invariants."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import attacks, keys, losses, smoothing
from robust_jax.attacks import objectives, threat_models

KEY = jax.random.key(11)
NORMS = sorted(threat_models.NORMS)
DUAL = {'linf': 1, 'l2': 2, 'l1': np.inf}
# Three steps, because on CPU each is compiled by itself.
pgd_attack = functools.partial(attacks.pgd_attack, num_steps=3, random_start=False)
VARIANTS = {
    'fgsm': (attacks.fgsm_attack, {}),
    'pgd': (pgd_attack, {}),
    'pgd random start': (pgd_attack, {'random_start': True, 'restarts': 2}),
    'pgd margin': (pgd_attack, {'loss': 'margin'}),
    'pgd kl': (pgd_attack, {'loss': 'kl'}),
    'pgd targeted': (pgd_attack, {'target': 'least_likely'}),
    'pgd raw gradient': (pgd_attack, {'direction': 'gradient', 'step_size': 0.1}),
    'pgd box first': (pgd_attack, {'order': 'box_then_ball'}),
    'ddn': (attacks.ddn, {'num_steps': 4}),
    'ddn authors': (attacks.ddn, {'num_steps': 4, 'init_norm': 0., 'gamma': 0.}),
    'ddn unrounded': (attacks.ddn, {'num_steps': 4, 'init_norm': 0., 'rounding': 'none'}),
    'fab': (attacks.fab_attack, {'num_steps': 4}),
    'fab targeted': (attacks.fab_attack, {'num_steps': 4, 'num_targets': 2, 'restarts': 2}),
    'carlini_wagner': (attacks.carlini_wagner, {'num_steps': 9, 'num_constants': 3,
                                                'learning_rate': 0.1, 'initial_constant': 1.}),
}
OF_L2 = ('ddn', 'carlini_wagner')
# Their objective is the margin.
CLOSEST = ('fab', 'carlini_wagner')


@functools.cache
def jitted(variant, norm):
  """One compilation serves the tests of a variant: logits_fn, epsilon and labels are traced."""
  attack, kwargs = VARIANTS[variant]
  return jax.jit(functools.partial(attack, norm=norm, **kwargs))


@pytest.mark.parametrize('variant, norm', [
    (variant, norm) for variant in VARIANTS for norm in NORMS
    if norm == 'l2' or not variant.startswith(OF_L2)])
def test_invariants(variant, norm, mlp_fn, images, labels):
  epsilon = jnp.asarray([0., 0.05, 0.3, 1., 5.])
  example_keys = keys.per_example(KEY, 5)
  attack = jitted(variant, norm)
  result = attack(example_keys, mlp_fn, images, labels, epsilon=epsilon)
  # In the box and in the ball, with a radius per example.
  assert result.images.shape == images.shape
  assert (result.images >= 0).all() and (result.images <= 1).all()
  assert (threat_models.norms(result.images - images, norm) <= epsilon + 2e-6).all()
  np.testing.assert_array_equal(result.images[0], images[0])
  assert result.success.shape == (5,) and np.isfinite(result.objective).all()
  if variant != 'pgd targeted':
    wrong = jnp.argmax(mlp_fn(result.images), -1) != labels
    np.testing.assert_array_equal(result.success, wrong)
  if variant.startswith(CLOSEST):
    np.testing.assert_allclose(result.objective, losses.margin(mlp_fn(result.images), labels),
                               atol=1e-4)
  elif not VARIANTS[variant][1].keys() & {'loss', 'target'}:
    np.testing.assert_allclose(
        result.objective, losses.cross_entropy(mlp_fn(result.images), labels), rtol=1e-4)
  # An example's result depends on its own key, not on its place.
  order = jnp.asarray([3, 1, 4, 0, 2])
  shuffled = attack(example_keys[order], mlp_fn, images[order], labels[order],
                    epsilon=epsilon[order])
  np.testing.assert_allclose(shuffled.images, result.images[order], atol=1e-4)
  # A constant classifier has a zero gradient everywhere.
  constant = jax.tree.map(jnp.zeros_like, mlp_fn)
  flat = attack(example_keys, constant, images, labels, epsilon=epsilon).images
  assert np.isfinite(flat).all()
  assert (threat_models.norms(flat - images, norm) <= epsilon + 2e-6).all()


@pytest.mark.parametrize('variant', ['pgd', 'pgd random start', 'ddn', 'fab targeted',
                                     'carlini_wagner'])
def test_batch_equals_loop_of_singles(variant, mlp_fn, images, labels):
  example_keys = keys.per_example(KEY, 5)
  attack = jitted(variant, 'l2')
  together = attack(KEY, mlp_fn, images, labels, epsilon=0.4)
  for i in range(5):
    one = slice(i, i + 1)
    alone = attack(example_keys[one], mlp_fn, images[one], labels[one], epsilon=0.4)
    np.testing.assert_allclose(alone.images[0], together.images[i], atol=1e-5)


@pytest.mark.parametrize('norm', NORMS)
def test_objective_does_not_fall_on_a_linear_model(norm, linear_fn, images, labels):
  for loss in ('cross_entropy', 'margin'):
    result = pgd_attack(KEY, linear_fn, images, labels, epsilon=0.2, norm=norm, loss=loss)
    start = {'cross_entropy': losses.cross_entropy, 'margin': losses.margin}[loss]
    assert (result.objective >= start(linear_fn(images), labels) - 1e-5).all()


@pytest.mark.parametrize('norm', NORMS)
def test_pgd_finds_the_worst_case_of_a_linear_model(norm):
  # Two classes, margin w.x, far from the box: the worst case loses epsilon * ||w||_dual.
  w = np.array([0.5, -1., 2., 0.25, 1.5, -0.75], np.float32)
  fn = lambda x: jnp.stack([x.reshape(len(x), -1) @ w, jnp.zeros(len(x))], -1)
  x = jnp.full((1, 2, 3, 1), 0.5)
  result = pgd_attack(KEY, fn, x, jnp.asarray([0]), epsilon=0.1, norm=norm, loss='margin',
                              num_steps=6)
  worst = -(0.5 * w.sum() - 0.1 * np.linalg.norm(w, ord=DUAL[norm]))
  np.testing.assert_allclose(result.objective, worst, rtol=1e-5)


def worst_in_l1(w, x, epsilon):
  """The least w.z over z in the box with |z - x|_1 <= epsilon: the steepest entries in full."""
  room = np.where(w > 0, x, 1 - x)
  value = w @ x
  for j in np.argsort(-np.abs(w)):
    moved = min(room[j], epsilon)
    value, epsilon = value - abs(w[j]) * moved, epsilon - moved
  return value


@pytest.mark.parametrize('name', ['pgd', 'fgsm'])
def test_l1_attacks_find_the_worst_case_of_a_linear_model_in_the_box(name):
  # Where a step goes to an entry at its end of the box, it was lost: here all of them.
  rng = np.random.default_rng(0)
  w = rng.normal(size=(8, 12)).astype(np.float32)
  x = np.clip(rng.uniform(-0.5, 1.5, size=(8, 12)), 0, 1).astype(np.float32)
  w[0, :4], x[0, :4] = [3, 2, 2, 2], [1, 0.1, 0.1, 0.1]
  fn = jax.tree_util.Partial(lambda w, x: jnp.stack([jnp.sum(w * x, -1), 0 * x[:, 0]], -1), w)
  for epsilon in (0.3, 2., 5.):
    attack = {'fgsm': attacks.fgsm, 'pgd': functools.partial(
        attacks.pgd_attack, random_start=False, num_steps=30, loss='margin')}[name]
    found = attack(KEY, fn, x, np.zeros(8, int), epsilon=epsilon, norm='l1')
    value = np.sum(w * np.asarray(found.images, np.float64), -1)
    worst = np.array([worst_in_l1(*each, epsilon) for each in zip(w, x.astype(float))])
    clean = np.sum(w * x, -1)
    # All that can be won.
    assert ((clean - value) >= (clean - worst) * (0.995 if name == 'pgd' else 1) - 1e-5).all()


def test_l1_pgd_passes_a_pixel_at_the_end_of_the_box():
  w = jnp.asarray([3., 2., 2., 2.])
  fn = lambda x: jnp.stack([5 - x @ w, jnp.zeros(len(x))], -1)
  x = jnp.asarray([[1., 0.1, 0.1, 0.1]])
  for start in (False, True):
    result = attacks.pgd_attack(KEY, fn, x, jnp.asarray([0]), epsilon=2., norm='l1', num_steps=20,
                                random_start=start)
    assert result.success.all(), 'as (1, .9, .6, .1) is misclassified'


def test_l1_pgd_against_pairs_of_pixels_in_ball_and_box(mlp_fn, images, labels):
  # All points that spend epsilon on one pixel, as far as the box lets it, and then on another.
  victim = smoothing.victim(mlp_fn, smoothing.sample_noise(KEY, images, sigma=0.1, num_noise=4))
  objective = victim.objective(objectives.cross_entropy, labels)
  flat, points = np.asarray(images).reshape(5, 12), [np.asarray(images).reshape(5, 12)]
  for first in range(12):
    for second in range(12):
      for ends in ((0, 0), (0, 1), (1, 0), (1, 1)):
        point, left = flat.copy(), np.full(5, 1.)
        for pixel, end in zip((first, second), ends):
          move = np.clip(end - point[:, pixel], -left, left)
          point[:, pixel] += move
          left -= np.abs(move)
        points.append(point)
  best = jnp.max(jax.lax.map(lambda x: objective(x.reshape(images.shape)), jnp.stack(points)), 0)
  found = attacks.pgd_attack(KEY, mlp_fn, images, labels, epsilon=1., norm='l1', num_steps=40,
                             noise=victim.noise, restarts=3)
  still = objective(images)
  # Some examples have local maxima, others have better points than these.
  assert jnp.sum(found.objective - still) >= 0.95 * jnp.sum(best - still)


NAN_AT_GREY = jax.tree_util.Partial(
    lambda x: jnp.stack([jnp.linalg.norm((x - 0.5).reshape(len(x), -1), axis=-1) + 0.1,
                         jnp.zeros(len(x))], -1))


@pytest.mark.parametrize('name, kwargs', [
    *(('pgd', dict(norm=norm)) for norm in NORMS), ('pgd', dict(direction='gradient', norm='l2')),
    ('pgd', dict(norm='l2', noise=True)), ('fgsm', {}), ('ddn', {}), ('lbfgs', {}),
    ('fab', {}), ('carlini_wagner', {})])
def test_a_gradient_that_is_not_finite_leaves_the_image_and_is_marked(name, kwargs, images):
  # The norm has no gradient at 0: the first image is there, the others are not.
  x = jnp.asarray(images).at[0].set(0.5)
  attack = {'pgd': functools.partial(pgd_attack, random_start=False), 'fgsm': attacks.fgsm,
            'ddn': functools.partial(attacks.ddn, num_steps=4),
            'fab': functools.partial(attacks.fab_attack, num_steps=3),
            'carlini_wagner': functools.partial(attacks.carlini_wagner, num_steps=3),
            'lbfgs': functools.partial(attacks.lbfgs_attack, num_constants=2)}[name]
  noise = jnp.zeros((2, *x.shape)) if kwargs.get('noise') else None
  result = attack(KEY, NAN_AT_GREY, x, jnp.zeros(5, int), epsilon=0.3, **{**kwargs, 'noise': noise})
  np.testing.assert_array_equal(result.undefined, [True] + 4 * [False])
  assert np.isfinite(result.images).all() and not result.success[0]
  np.testing.assert_array_equal(result.images[0], x[0])


def test_a_random_start_leaves_the_point_without_a_gradient(images):
  x = jnp.asarray(images).at[0].set(0.5)
  result = pgd_attack(KEY, NAN_AT_GREY, x, jnp.zeros(5, int), epsilon=0.3, restarts=2,
                      random_start=True)
  assert not result.undefined.any() and (result.images[0] != x[0]).any()


def test_compiled_once_for_all_calls(mlp_fn, images, labels):
  traces = []

  def logits(params, x):
    traces.append(x)
    return jnp.tanh(x.reshape(len(x), -1) @ params['w1']) @ params['w2']

  counts = []
  for number in range(3):
    params = jax.tree.map(lambda leaf, scale=number + 1: leaf * scale, mlp_fn.args[0])
    fn = jax.tree_util.Partial(logits, params)
    for attack in (pgd_attack, functools.partial(attacks.ddn, num_steps=2)):
      result = attack(jax.random.key(number), fn, images, labels, epsilon=0.1 * number)
      np.testing.assert_array_equal(result.success, jnp.argmax(fn(result.images), -1) != labels)
    counts.append(len(traces))
  # Later calls trace for the shape of the logits alone, and these tests once each to judge.
  assert counts[0] > counts[2] - counts[1] == counts[1] - counts[0] <= 4, counts


def test_numbers_may_be_arrays(mlp_fn, images, labels):
  kwargs = dict(step_ratio=2., min_step_size=0.01)
  as_arrays = {name: jnp.float32(value) for name, value in kwargs.items()}
  found, same = (pgd_attack(KEY, mlp_fn, images, labels, epsilon=0.1, **each)
                 for each in (kwargs, as_arrays))
  np.testing.assert_allclose(same.images, found.images, atol=1e-6)


@pytest.mark.parametrize('name', ['pgd', 'ddn', 'lbfgs'])
def test_what_a_plain_function_reads_may_change(name, images):
  bias = jnp.asarray([1., 0.])
  fn = lambda x: 1e-3 * x.reshape(len(x), -1)[:, :2] + bias
  attack = {'pgd': functools.partial(pgd_attack, num_steps=1), 'ddn': attacks.ddn,
            'lbfgs': attacks.lbfgs_attack}[name]
  found = [attack(KEY, fn, images, np.zeros(5, int), epsilon=0.1).success.any()]
  bias = bias[::-1]
  found.append(attack(KEY, fn, images, np.zeros(5, int), epsilon=0.1).success.all())
  assert found == [False, True]


def test_fgsm_is_one_step_of_length_epsilon(linear_fn, images, labels):
  gradient = jax.grad(lambda x: losses.cross_entropy(linear_fn(x), labels).sum())(images)
  result = attacks.fgsm_attack(KEY, linear_fn, images, labels, epsilon=0.1, norm='linf')
  np.testing.assert_allclose(
      result.images, np.clip(images + 0.1 * np.sign(gradient), 0, 1), atol=1e-6)
  one_pixel = attacks.fgsm(KEY, linear_fn, images, labels, epsilon=0.1, norm='l1',
                           order='ball_then_box').images
  changed = np.asarray(one_pixel != images).reshape(5, -1).sum(-1)
  assert (changed <= 1).all() and changed.sum() >= 3


def test_pgd_equals_a_plain_loop(mlp_fn, images, labels):
  x = images
  for _ in range(4):
    g = jax.grad(lambda x: losses.cross_entropy(mlp_fn(x), labels).sum())(x)
    g = np.asarray(g) / np.linalg.norm(np.reshape(g, (5, -1)), axis=-1)[:, None, None, None]
    delta = np.asarray(x + 0.05 * g - images)
    size = np.linalg.norm(delta.reshape(5, -1), axis=-1)[:, None, None, None]
    x = jnp.clip(images + delta * np.minimum(1, 0.12 / np.maximum(size, 1e-12)), 0, 1)
  result = pgd_attack(KEY, mlp_fn, images, labels, epsilon=0.12, norm='l2', num_steps=4,
                              step_size=0.05)
  np.testing.assert_allclose(result.images, x, atol=2e-6)


def test_raw_gradient_steps(mlp_fn, images, labels):
  g = jax.grad(lambda x: losses.cross_entropy(mlp_fn(x), labels).sum())(images)
  result = pgd_attack(KEY, mlp_fn, images, labels, epsilon=0.1, norm='linf', num_steps=1,
                              step_size=0.05, direction='gradient')
  np.testing.assert_allclose(
      result.images, jnp.clip(images + jnp.clip(0.05 * g, -0.1, 0.1), 0, 1), atol=1e-6)


def test_step_size_per_example_and_scheduled(linear_fn, images, labels):
  threat_model = threat_models.linf(1.)
  objective = lambda x: losses.cross_entropy(linear_fn(x), labels)
  sizes = jnp.asarray([0.01, 0.02, 0.03, 0.04, 0.])
  moved = attacks.pgd(KEY, objective, images, threat_model, step_size=sizes, num_steps=1).images
  assert (threat_models.norms(moved - images, 'linf') <= sizes + 1e-6).all()
  np.testing.assert_array_equal(moved[4], images[4])
  scheduled = attacks.pgd(KEY, objective, images, threat_model,
                          step_size=lambda t: jnp.where(t == 0, 0.03, 0.), num_steps=3).images
  constant = attacks.pgd(KEY, objective, images, threat_model, step_size=0.03, num_steps=1).images
  np.testing.assert_array_equal(scheduled, constant)


def test_no_steps_is_the_identity(mlp_fn, images, labels):
  result = pgd_attack(KEY, mlp_fn, images, labels, epsilon=0.3, num_steps=0)
  np.testing.assert_array_equal(result.images, images)
  np.testing.assert_array_equal(result.success, jnp.argmax(mlp_fn(images), -1) != labels)


def test_restarts_keep_the_worst_per_example(mlp_fn, images, labels):
  values = [pgd_attack(KEY, mlp_fn, images, labels, epsilon=0.5, num_steps=2,
                               random_start=True, restarts=r).objective for r in (1, 2, 6)]
  assert (values[1] >= values[0]).all() and (values[2] >= values[1]).all()
  assert (values[2] > values[0]).any()


def test_restarts_keep_a_success_over_a_larger_objective(images, labels):
  # The first pixel alone decides success, the second alone the objective.
  threat_model = threat_models.linf(0.2)
  objective = lambda x: x[:, 0, 1, 0]
  success = lambda x: x[:, 0, 0, 0] > 0.6
  kwargs = dict(step_size=0., num_steps=0, random_start=True)
  images = jnp.full_like(images, 0.5)
  starts = jnp.stack([
      threat_model.random(keys.fold_in(keys.fold_in(keys.per_example(KEY, 5), r), 0), images)
      for r in range(6)])
  found = attacks.pgd(KEY, objective, images, threat_model, restarts=6, success_fn=success,
                      **kwargs)
  np.testing.assert_array_equal(found.success, success(found.images))
  np.testing.assert_array_equal(found.objective, objective(found.images))
  for i in range(5):
    good = [r for r in range(6) if bool(success(starts[r])[i])] or list(range(6))
    best = max(good, key=lambda r: float(objective(starts[r])[i]))
    np.testing.assert_allclose(found.images[i], starts[best, i], atol=1e-6)
  assert found.success.any()


def test_targets_are_never_the_label_and_are_reached(linear_fn, images, labels):
  result = pgd_attack(KEY, linear_fn, images, labels, epsilon=2., norm='l2',
                              targets=(labels + 1) % 4, num_steps=8)
  np.testing.assert_array_equal(
      result.success, jnp.argmax(linear_fn(result.images), -1) == (labels + 1) % 4)
  assert result.success.any()
  for target in ('random', 'least_likely'):
    still = pgd_attack(KEY, linear_fn, images, jnp.argmax(linear_fn(images), -1),
                               epsilon=0., target=target)
    assert not still.success.any()


EVERY_ATTACK = {
    **VARIANTS,
    'lbfgs': (attacks.lbfgs_attack, {'num_steps': 5, 'num_constants': 2}),
    'apgd': (attacks.apgd_attack, {'num_steps': 4}),
    'square': (attacks.square_attack, {'num_queries': 4}),
    'none': (attacks.no_attack, {}),
}


@pytest.mark.parametrize('variant', EVERY_ATTACK)
def test_without_noise_an_attack_is_that_with_one_draw_of_zeros(variant, mlp_fn, images, labels):
  attack, kwargs = EVERY_ATTACK[variant]
  attack = functools.partial(attack, KEY, mlp_fn, images, labels, epsilon=0.3, **kwargs)
  plain, smoothed = attack(), attack(noise=jnp.zeros((1, *images.shape)))
  jax.tree.map(np.testing.assert_array_equal, smoothed, plain)


@pytest.mark.parametrize('variant', EVERY_ATTACK)
def test_nan_is_no_class_to_an_attack(variant, images):
  # Labels 0 and 1: neither is what a network of NaN says, with noise or without.
  attack, kwargs = EVERY_ATTACK[variant]
  fn = jax.tree_util.Partial(lambda x: jnp.full((len(x), 3), jnp.nan) * x.sum())
  for noise in (None, jnp.zeros((2, 2, *images.shape[1:]))):
    result = attack(KEY, fn, images[:2], jnp.asarray([0, 1]), epsilon=0.3, noise=noise, **kwargs)
    targeted = 'target' in kwargs
    np.testing.assert_array_equal(result.success, [not targeted] * 2)


@pytest.mark.parametrize('kwargs', [
    {'loss': 'margin'}, {'loss': 'kl'}, {'target': 'random'}, {'target': 'least_likely'},
    {'target': 'random', 'smoothed_objective': 'naive'},
    {'target': 'random', 'smoothed_objective': 'gradient_free', 'sigma': 0.4}])
def test_every_loss_attacks_the_smoothed_classifier(kwargs, mlp_fn, images, labels):
  noise = smoothing.sample_noise(KEY, images, sigma=0.4, num_noise=64)
  attack = functools.partial(pgd_attack, KEY, mlp_fn, images, labels, epsilon=0.5, norm='l2',
                             noise=noise, **kwargs)
  found, still = attack(), attack(num_steps=0)
  assert (found.objective > still.objective).mean() >= 0.8
  if 'target' not in kwargs:
    np.testing.assert_array_equal(
        found.success, smoothing.victim(mlp_fn, noise).predict(found.images) != labels)


@pytest.mark.parametrize('kind', ['smoothadv', 'naive', 'gradient_free'])
def test_smoothed_objectives_ascend_in_the_one_loop(kind, mlp_fn, images, labels):
  noise = smoothing.sample_noise(KEY, images, sigma=0.4, num_noise=64)
  result = pgd_attack(KEY, mlp_fn, images, labels, epsilon=0.5, norm='l2', noise=noise,
                              sigma=0.4, smoothed_objective=kind)
  victim = smoothing.victim(mlp_fn, noise)
  objective = victim.objective(objectives.cross_entropy, labels)
  assert jnp.mean(objective(result.images)) > jnp.mean(objective(images))
  np.testing.assert_array_equal(result.success, victim.predict(result.images) != labels)


@pytest.mark.parametrize('variant', ['pgd', 'ddn'])
def test_new_parameters_compile_nothing(variant, images, labels):
  attack, kwargs = VARIANTS[variant]
  chex.clear_trace_counter()

  @jax.jit
  @chex.assert_max_traces(n=1)
  def run(key, logits_fn, epsilon):
    return attack(key, logits_fn, images, labels, epsilon=epsilon, **kwargs).images

  def logits(params, x):
    return x.reshape(len(x), -1) @ params

  for seed in range(2):
    params = jax.random.normal(jax.random.key(seed), (12, 4))
    run(jax.random.key(seed), jax.tree_util.Partial(logits, params), 0.1 * (seed + 1))


@pytest.mark.parametrize('kwargs, message', [
    (dict(norm='l3'), "norm .*'l3'"),
    (dict(loss='hinge'), "loss .*'hinge'"),
    (dict(direction='up'), "direction .*'up'"),
    (dict(num_steps=-1), 'num_steps .*-1'),
    (dict(restarts=0), 'restarts .*0'),
    (dict(restarts=2), 'restarts .*random_start.*2'),
    (dict(target='any'), "target .*'any'"),
    (dict(target=np.arange(2)), 'target .*classes are given as targets'),
    (dict(loss='kl', target='random'), "loss 'kl' .*target"),
    (dict(loss='logit_gap'), "loss 'logit_gap' .*target"),
    (dict(smoothed_objective='x'), "smoothed_objective .*'x'"),
    (dict(smoothed_objective='naive', loss='margin'), "smoothed_objective .*'margin'.*'naive'"),
    (dict(smoothed_objective='gradient_free'), 'sigma .*None'),
    (dict(smoothed_objective='gradient_free', sigma=1.), 'num_noise .*1'),
])
@pytest.mark.parametrize('noisy', [False, True])
def test_bad_arguments_are_named(noisy, kwargs, message, linear_fn, images, labels):
  noise = jnp.zeros((1,) + images.shape) if noisy else None
  with pytest.raises(ValueError, match=message):
    pgd_attack(KEY, linear_fn, images, labels, epsilon=0.1, noise=noise, **kwargs)


@pytest.mark.parametrize('noisy', [False, True])
def test_with_a_target_the_target_wins_and_no_third_class(noisy):
  # Class 2 is nearer than the target 1: z_1 - z_0 grows fastest where class 2 wins.
  weights = jnp.array([[0., 1., 1.6], [0., 1., -2.]])
  fn = lambda x: x.reshape(len(x), -1) @ weights + jnp.array([1., 0., 0.3])
  images, labels, targets = jnp.full((1, 2), 0.3), jnp.array([0]), jnp.array([1])
  found = {loss: pgd_attack(KEY, fn, images, labels, epsilon=0.6, norm='l2', targets=targets,
                            noise=jnp.zeros((2, 1, 2)) if noisy else None, num_steps=20, loss=loss)
           for loss in ('cross_entropy', 'margin', 'logit_gap')}
  for loss in ('cross_entropy', 'margin'):
    assert found[loss].success.all(), loss
  np.testing.assert_allclose(
      found['cross_entropy'].objective, -losses.cross_entropy(fn(found['cross_entropy'].images),
                                                              targets), rtol=1e-5)


def test_pgd_starts_at_random_as_the_field_does(linear_fn, images, labels):
  at_random = attacks.pgd_attack(KEY, linear_fn, images, labels, epsilon=0.1, num_steps=0)
  assert (at_random.images != images).mean() > 0.9
  fgsm = attacks.fgsm_attack(KEY, linear_fn, images, labels, epsilon=0.1)
  from_image = pgd_attack(KEY, linear_fn, images, labels, epsilon=0.1, num_steps=1, step_ratio=1.)
  np.testing.assert_array_equal(fgsm.images, from_image.images)
