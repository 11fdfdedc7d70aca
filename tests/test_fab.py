"""FAB: exact projections, the published package's iterates, and the closest images there are."""

import functools

import golden_attacks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from robust_jax import attacks, keys, losses, smoothing
from robust_jax.attacks import fab, threat_models

KEY = jax.random.key(5)
NORMS = sorted(threat_models.NORMS)
GOLDEN = np.load(golden_attacks.FILE)
IMAGES, LABELS, TARGETS = (jnp.asarray(GOLDEN[name]) for name in ('images', 'labels', 'targets'))
NETWORK = jax.tree_util.Partial(
    functools.partial(golden_attacks.network, np=jnp),
    {name: jnp.asarray(GOLDEN[f'weights/{name}']) for name in ('first', 'bias', 'second')})
project = jax.jit(fab._to_hyperplane, static_argnames='norm')
attack = functools.partial(attacks.fab_attack, KEY, NETWORK, IMAGES, LABELS)


def shortest(row, normal, excess, norm):
  """The least norm of d with <normal, d> = -excess and row + d in the box; None: there is none."""
  size, bounds = len(row), list(zip(-row, 1 - row))
  if norm == 'l2':
    found = optimize.minimize(
        lambda d: d @ d, np.zeros(size), jac=lambda d: 2 * d, bounds=bounds, method='SLSQP',
        constraints={'type': 'eq', 'fun': lambda d: normal @ d + excess, 'jac': lambda d: normal},
        options={'ftol': 1e-14, 'maxiter': 500})
    return np.sqrt(found.fun) if found.success else None
  # |d| <= lengths, of one length for all entries in linf.
  columns = np.eye(size) if norm == 'l1' else np.ones((size, 1))
  lengths = columns.shape[1]
  found = optimize.linprog(
      np.r_[np.zeros(size), np.ones(lengths)], A_eq=np.r_[normal, np.zeros(lengths)][None],
      b_eq=[-excess], A_ub=np.block([[np.eye(size), -columns], [-np.eye(size), -columns]]),
      b_ub=np.zeros(2 * size), bounds=bounds + lengths * [(0, None)])
  return found.fun if found.success else None


@pytest.mark.parametrize('norm', NORMS)
def test_projections_are_the_closest_points_of_hyperplane_and_box(norm):
  rng = np.random.default_rng(0)
  rows = np.clip(rng.uniform(-0.3, 1.3, size=(40, 7)), 0, 1)
  normal = rng.normal(size=(40, 7)) * rng.choice([0, 0.01, 1], size=(40, 7))
  normal[:10] = np.sign(normal[:10])
  normal[0] = 0
  # From the hyperplane to what no point of the box reaches.
  most = np.sum(np.where(normal > 0, rows, rows - 1) * normal, -1)
  excess = most * rng.uniform(0, 1.3, size=40)
  excess[1], excess[20:] = 0, -excess[20:]
  moves = np.float64(project(*map(jnp.float32, (rows, normal, excess)), norm=norm))
  assert (rows + moves > -1e-6).all() and (rows + moves < 1 + 1e-6).all()
  reached = 0
  for move, row, w, over in zip(moves, rows, normal, excess):
    expected = shortest(row, w, over, norm)
    if expected is None or not w.any():
      np.testing.assert_allclose(row + move, np.where(w * over > 0, 0, np.where(
          w * over < 0, 1, row)), atol=1e-6)
    else:
      reached += 1
      np.testing.assert_allclose(w @ move, -over, atol=2e-6)
      np.testing.assert_allclose(np.linalg.norm(move, ord=fab_order(norm)), expected, atol=2e-5)
  assert 20 < reached < 40


def fab_order(norm):
  return {'linf': np.inf, 'l2': 2, 'l1': 1}[norm]


@pytest.mark.parametrize('norm', NORMS)
def test_projections_do_not_depend_on_the_length_of_the_normal(norm):
  rng = np.random.default_rng(1)
  rows, normal = jnp.asarray(rng.uniform(size=(9, 50))), jnp.asarray(rng.normal(size=(9, 50)))
  expected = project(rows, normal, jnp.ones(9), norm=norm)
  for scale in (1e-30, 1e30):
    found = project(rows, scale * normal, jnp.full(9, scale), norm=norm)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize('kind', ['any', 'targeted'])
@pytest.mark.parametrize('norm', NORMS)
def test_it_goes_where_the_published_package_goes(norm, kind):
  victim, start = smoothing.victim(NETWORK), jnp.asarray(GOLDEN[f'fab/{norm}/start'])
  others = (LABELS + jnp.arange(1, golden_attacks.CLASSES)[:, None]) % golden_attacks.CLASSES
  infinite = jnp.full(len(IMAGES), jnp.inf)
  first = fab._Search(IMAGES, IMAGES, infinite, infinite < 0)
  walk = jax.jit(lambda num_steps: fab._walk(
      victim, start, first, IMAGES, LABELS, TARGETS[None] if kind == 'targeted' else others,
      lambda x: victim.predict(x) != LABELS, norm=norm, num_steps=num_steps))
  for step, expected in zip(golden_attacks.FAB_KEPT, GOLDEN[f'fab/{norm}/{kind}/iterates']):
    search = walk(step)
    np.testing.assert_allclose(search.x, expected, atol=1e-4, err_msg=str(step))
  np.testing.assert_allclose(search.best, GOLDEN[f'fab/{norm}/{kind}/best'], atol=1e-4)
  assert (search.norm < jnp.inf).all() and not search.undefined.any()


@pytest.mark.parametrize('num_targets', [0, 3])
@pytest.mark.parametrize('norm', NORMS)
def test_of_a_linear_model_it_finds_the_closest_point_of_the_box(norm, num_targets):
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(12, 4)).astype(np.float32)
  images = np.clip(rng.uniform(-0.5, 1.5, size=(6, 12)), 0, 1).astype(np.float32)
  logits = images @ weights
  labels = logits.argmax(-1)
  # To the closest of the hyperplanes at which another class begins to win.
  closest = np.min([[shortest(x.astype(float), weights[:, t] - weights[:, y], z[t] - z[y], norm)
                     or np.inf for t in range(4) if t != y]
                    for x, y, z in zip(images, labels, logits)], axis=-1)
  fn = jax.tree_util.Partial(lambda w, x: x @ w, weights)
  result = attacks.fab_attack(KEY, fn, images, labels, epsilon=np.inf, norm=norm, num_steps=20,
                              num_targets=num_targets)
  found = threat_models.norms(result.images - images, norm)
  assert result.success.all()
  assert (found >= closest * (1 - 1e-4)).all() and (found <= closest * 1.01).all()


@pytest.mark.parametrize('norm', NORMS)
def test_against_all_points_of_a_plane(norm):
  weights = {name: 3 * np.float32(value) for name, value in golden_attacks.weights(5, 2).items()}
  fn = jax.tree_util.Partial(functools.partial(golden_attacks.network, np=jnp), weights)
  images = np.random.default_rng(0).uniform(size=(40, 2)).astype(np.float32)
  grid = np.stack(np.meshgrid(*2 * [np.linspace(0, 1, 401)]), -1).reshape(-1, 2).astype(np.float32)
  classes, labels = fn(grid).argmax(-1), fn(images).argmax(-1)
  distances = np.linalg.norm(grid - images[:, None], ord=fab_order(norm), axis=-1)
  closest = np.where(classes != labels[:, None], distances, np.inf).min(-1)
  size = []
  for kwargs in ({}, {'num_targets': 4, 'restarts': 4}):
    result = attacks.fab_attack(KEY, fn, images, labels, epsilon=np.inf, norm=norm, **kwargs)
    size.append(threat_models.norms(result.images - images, norm))
    # Some are on the boundary but for rounding.
    assert result.success.all() and (losses.margin(fn(result.images), labels) > -1e-5).all()
  once, each_class = size
  # A single run may go to a boundary that is farther away.
  assert (each_class <= 1.02 * once).all() and (each_class < 0.7 * once).any()
  assert (each_class <= 1.02 * closest).all(), (each_class, closest)


@pytest.mark.parametrize('norm, kwargs', [
    ('linf', {}), ('l2', {'num_targets': 9, 'restarts': 2}), ('l1', {'restarts': 3})])
def test_it_stays_in_the_set_and_finds_the_same_at_any_radius(norm, kwargs):
  epsilon = golden_attacks.RADII[norm] * np.linspace(0., 2., len(IMAGES)).astype(np.float32)
  result = attack(epsilon=epsilon, norm=norm, num_steps=20, **kwargs)
  size = threat_models.norms(result.images - IMAGES, norm)
  assert (size <= epsilon).all()
  assert (result.images >= 0).all() and (result.images <= 1).all()
  np.testing.assert_array_equal(result.success, NETWORK(result.images).argmax(-1) != LABELS)
  np.testing.assert_array_equal(result.success, size > 0)
  assert 0 < result.success.sum() < len(IMAGES)
  np.testing.assert_allclose(result.objective, losses.margin(NETWORK(result.images), LABELS),
                             atol=1e-5)
  if kwargs.get('restarts', 1) == 1:
    anywhere = attack(epsilon=np.inf, norm=norm, num_steps=20, **kwargs)
    assert anywhere.success.all()
    size = threat_models.norms(anywhere.images - IMAGES, norm)
    np.testing.assert_array_equal(result.success, size <= epsilon)


def test_the_closest_of_all_runs_is_found():
  # Every image's runs side by side, in one batch.
  runs, rows = 6, np.arange(len(IMAGES))
  image, number = (grid.ravel() for grid in np.meshgrid(rows, np.arange(runs)))
  kwargs = dict(epsilon=0.06, num_steps=10, num_targets=3, restarts=2)
  whole = attack(**kwargs)
  alone = attacks.fab_attack(keys.per_example(KEY, len(IMAGES))[image], NETWORK, IMAGES[image],
                             LABELS[image], only=number, **kwargs)
  success = alone.success.reshape(runs, -1)
  np.testing.assert_array_equal(whole.success, success.any(axis=0))
  size = threat_models.norms(alone.images - IMAGES[image], 'linf').reshape(runs, -1)
  closest = jnp.where(success, size, jnp.inf).min(axis=0)
  found = threat_models.norms(whole.images - IMAGES, 'linf')
  # Where a run has found one, the next random starts are nearer.
  np.testing.assert_allclose(found[whole.success], closest[whole.success], rtol=0.01)
  assert 0 < whole.success.sum() < len(IMAGES)


def test_a_target_has_to_be_reached():
  result = attack(epsilon=2., norm='l2', num_steps=30, targets=TARGETS)
  np.testing.assert_array_equal(result.success, NETWORK(result.images).argmax(-1) == TARGETS)
  assert result.success.sum() > len(IMAGES) / 2
  anything = attack(epsilon=2., norm='l2', num_steps=30)
  size = lambda result: threat_models.norms(result.images - IMAGES, 'l2')
  assert (size(anything) <= size(result) + 1e-3)[result.success].all()


def test_what_is_misclassified_already_stays():
  wrong = (LABELS + 1) % golden_attacks.CLASSES
  result = attacks.fab_attack(KEY, NETWORK, IMAGES, wrong, epsilon=0., num_steps=3)
  np.testing.assert_array_equal(result.images, IMAGES)
  assert result.success.all()


@pytest.mark.parametrize('num_targets', [0, 2])
def test_the_smoothed_classifier_is_attacked_through_its_draws(num_targets):
  noise = smoothing.sample_noise(KEY, IMAGES, sigma=0.1, num_noise=5)
  result = attack(epsilon=0.1, num_steps=10, noise=noise, num_targets=num_targets)
  victim = smoothing.victim(NETWORK, noise)
  np.testing.assert_array_equal(result.success, victim.predict(result.images) != LABELS)
  assert result.success.any()


def test_each_image_has_its_own_result_on_one_or_many_devices():
  kwargs = dict(epsilon=np.inf, num_steps=8, restarts=2)
  example_keys = jax.random.split(KEY, len(IMAGES))
  one = lambda key, x, y: attacks.fab_attack(key, NETWORK, x, y, **kwargs).images
  together = jax.jit(one)(example_keys, IMAGES, LABELS)
  split = lambda values: values.reshape(len(IMAGES), 1, *values.shape[1:])
  alone = jax.pmap(one)(*map(split, (example_keys, IMAGES, LABELS)))
  np.testing.assert_allclose(alone[:, 0], together, atol=1e-5)


def test_a_class_that_is_out_of_reach_is_left_out():
  masked = lambda images: NETWORK(images).at[:, 0].set(-jnp.inf)
  labels = masked(IMAGES).argmax(-1)
  for kwargs in ({}, {'num_targets': 4}):
    result = attacks.fab_attack(KEY, masked, IMAGES, labels, epsilon=1., num_steps=20, **kwargs)
    assert result.success.all() and not result.undefined.any()


@pytest.mark.parametrize('kwargs, message', [
    (dict(norm='l3'), "norm .*'l3'"), (dict(num_steps=0), 'num_steps .*0'),
    (dict(restarts=0), 'restarts .*0'), (dict(num_targets=-1), 'num_targets .*-1'),
])
def test_bad_arguments_are_named(kwargs, message):
  with pytest.raises(ValueError, match=message):
    attack(epsilon=0.1, **kwargs)
