"""Robust optimisation, tangents, derivative penalties and VAT, against NumPy and each other."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_training
from jax.test_util import check_grads

from launch import flags
from robust_jax import attacks, data, inputs, keys, losses, models, stages, workdir
from robust_jax.attacks import threat_models
from robust_jax.config import experiment, sections
from robust_jax.data import tangents
from robust_jax.errors import UserError
from robust_jax.training import methods
from robust_jax.training.methods.vat import virtual_direction
from robust_jax.types import Batch, Network, Progress

KEY = jax.random.key(6)
PROGRESS = Progress(jnp.asarray(0), jnp.asarray(0), jnp.asarray(0.))
PIXELS, CLASSES = 12, 4


def orthonormal(number, k=3, seed=0):
  """[number, PIXELS, k] with orthonormal columns."""
  draws = np.random.default_rng(seed).normal(size=(number, PIXELS, k))
  return jnp.asarray(np.linalg.qr(draws)[0], jnp.float32)


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  return Batch(
      images=jnp.asarray(rng.uniform(size=(8, 3, 4, 1)), jnp.float32),
      labels=jnp.asarray(rng.integers(0, CLASSES, 8), jnp.int32),
      index=jnp.asarray(rng.permutation(40)[:8], jnp.int32), mask=jnp.ones(8),
      aux={'tangents': orthonormal(8)})


@pytest.fixture(scope='module')
def linear():
  model = models.create('mlp', CLASSES, hidden=())
  return models.network(model), models.init(KEY, model, (3, 4, 1))['params']


@pytest.fixture(scope='module')
def mlp():
  model = models.create('mlp', CLASSES, hidden=(7,))
  return models.network(model), models.init(KEY, model, (3, 4, 1))['params']


run_method = functools.partial(tiny_training.run_method, progress=PROGRESS, key=KEY)


def logits_of(net):
  return net[0].eval_logits({'params': net[1], 'batch_stats': {}})


def numpy_jacobian(net, images, output):
  """d o / d x, [batch, classes, pixels], by central differences."""
  f = jax.jit(logits_of(net))
  outputs = (lambda x: np.asarray(jax.nn.softmax(f(x)))) if output == 'probabilities' else (
      lambda x: np.asarray(f(x)))
  images, columns = np.asarray(images), []
  for pixel in range(PIXELS):
    step = np.zeros(PIXELS, np.float32)
    step[pixel] = 1e-2
    step = step.reshape(images.shape[1:])
    columns.append((outputs(images + step) - outputs(images - step)) / 2e-2)
  return np.stack(columns, axis=-1)


close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)


# Algorithm 1: adversarial training with a single step.


@pytest.mark.parametrize('norm', ['l1', 'l2', 'linf'])
def test_one_step_has_its_closed_form_and_no_box(norm, linear, batch):
  weights = np.asarray(linear[1]['logits']['kernel'], np.float64)
  logits = np.asarray(logits_of(linear)(batch.images), np.float64)
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  gradient = (probs - np.eye(CLASSES)[batch.labels]) @ weights.T
  if norm == 'linf':
    step = np.sign(gradient)
  elif norm == 'l2':
    step = gradient / np.linalg.norm(gradient, axis=-1, keepdims=True)
  else:
    step = np.where(np.abs(gradient) == np.abs(gradient).max(-1, keepdims=True),
                    np.sign(gradient), 0)
  epsilon = np.linspace(0.1, 2, 8).astype(np.float32)
  expected = np.asarray(batch.images).reshape(8, -1) + epsilon[:, None] * step
  attack = functools.partial(attacks.fgsm_attack, norm=norm, epsilon=epsilon)
  found = attack(KEY, logits_of(linear), batch.images, batch.labels, order='ball_only').images
  close(found.reshape(8, -1), expected, atol=1e-5)
  assert expected.min() < -0.01 and expected.max() > 1.01
  if norm != 'l1':  # There, what the box takes away goes to the next entries.
    longest = inputs.diameter(norm, batch.images.shape[1:])
    boxed = attack(KEY, logits_of(linear), batch.images, batch.labels,
                   epsilon=np.minimum(epsilon, longest)).images
    close(boxed.reshape(8, -1), np.clip(expected, 0, 1), atol=1e-5)


def test_robust_optimisation_updates_on_the_worst_points_alone(mlp, batch):
  attack = functools.partial(attacks.fgsm_attack, norm='l2', order='ball_only')
  attack_keys = keys.fold_in(keys.fold_in(KEY, batch.index), 0)
  worst = attack(attack_keys, logits_of(mlp), batch.images, batch.labels, epsilon=0.5).images
  found, gradient = run_method(
      functools.partial(methods.adversarial, attack=attack, epsilon=0.5), *mlp, batch)
  expected, expected_gradient = run_method(methods.standard, *mlp, batch._replace(images=worst))
  close(found.loss, expected.loss)
  jax.tree.map(close, gradient, expected_gradient)
  # Equation 3: alpha J(x) + (1 - alpha) J(x + Delta).
  mixed, _ = run_method(functools.partial(methods.adversarial, attack=attack, epsilon=0.5,
                                          clean_share=0.3), *mlp, batch)
  clean, _ = run_method(methods.standard, *mlp, batch)
  close(mixed.loss, 0.3 * clean.loss + 0.7 * expected.loss)


def test_fgsm_in_l1_changes_as_many_entries_as_asked(mlp, batch):
  for top_k in (1, 3):
    found = attacks.fgsm_attack(KEY, logits_of(mlp), batch.images, batch.labels, epsilon=0.6,
                                norm='l1', l1_top_k=top_k, order='ball_only').images
    changed = jnp.abs(found - batch.images).reshape(8, -1)
    np.testing.assert_array_equal((changed > 1e-6).sum(-1), top_k)
    close(changed.max(-1), 0.6 / top_k, atol=1e-6)


@pytest.mark.parametrize('norm', ['l1', 'l2', 'linf'])
def test_without_a_box_points_and_starts_are_in_the_ball_alone(norm, batch):
  threat_model = threat_models.NORMS[norm](3., order='ball_only')
  for point in (threat_model.random(KEY, batch.images),
                threat_model.project(batch.images + 9., batch.images)):
    delta = point - batch.images
    assert (threat_models.norms(delta, norm) <= 3 + 1e-4).all()
    assert (point > 1).any()
  start = threat_model.random(KEY, batch.images)
  close(threat_model.project(start, batch.images), start, atol=1e-5)


# The tangent set.


def test_tangent_set_against_numpy(batch):
  epsilon = np.linspace(0, 2, 8).astype(np.float32)
  threat_model = threat_models.tangent(epsilon, batch.aux['tangents'])
  rng = np.random.default_rng(1)
  gradient = rng.normal(size=batch.images.shape).astype(np.float32)
  far = np.asarray(batch.images) + gradient
  step = np.asarray(threat_model.steepest(KEY, jnp.asarray(gradient))).reshape(8, -1)
  point = np.asarray(threat_model.project(jnp.asarray(far), batch.images))
  start = np.asarray(threat_model.random(KEY, batch.images))
  for i in range(8):
    basis = np.asarray(batch.aux['tangents'][i], np.float64)
    onto = basis @ basis.T
    along = onto @ gradient[i].ravel()
    close(step[i], along / np.linalg.norm(along), atol=1e-5)
    length = np.linalg.norm(along)
    image = np.asarray(batch.images[i]).ravel()
    close(point[i].ravel(), image + along * min(1, epsilon[i] / length), atol=1e-5)
    delta = start[i].ravel() - image
    close(onto @ delta, delta, atol=1e-5)
    assert np.linalg.norm(delta) <= epsilon[i] + 1e-5
  assert np.linalg.norm(start[-1] - batch.images[-1]) > 0.05


def test_tangent_steps_are_defined_where_there_is_no_gradient_in_the_span(batch):
  threat_model = threat_models.tangent(1., batch.aux['tangents'])
  step = threat_model.steepest(KEY, jnp.zeros_like(batch.images)).reshape(8, -1)
  close(jnp.linalg.norm(step, axis=-1), 1., atol=1e-5)
  within = jnp.einsum('bdk,bk->bd', batch.aux['tangents'],
                      jnp.einsum('bdk,bd->bk', batch.aux['tangents'], step))
  close(within, step, atol=1e-5)
  # Each example's own key decides, not its place.
  order = jnp.asarray([3, 1, 7, 0, 2, 4, 6, 5])
  own = keys.per_example(KEY, 8)
  again = threat_models.tangent(1., batch.aux['tangents'][order]).steepest(
      own[order], jnp.zeros_like(batch.images)).reshape(8, -1)
  close(again, step[order], atol=1e-6)
  with pytest.raises(ValueError, match=r'basis .*\(12, 3\)'):
    threat_models.tangent(1., batch.aux['tangents'][0])


def test_tangent_training_in_the_whole_space_is_l2_training(mlp, batch):
  whole = batch._replace(aux={'tangents': jnp.broadcast_to(jnp.eye(PIXELS), (8, PIXELS, PIXELS))})
  found, gradient = run_method(functools.partial(methods.tangent, epsilon=0.7), *mlp, whole)
  attack = functools.partial(attacks.fgsm_attack, norm='l2', order='ball_only')
  expected, expected_gradient = run_method(
      functools.partial(methods.adversarial, attack=attack, epsilon=0.7), *mlp, batch)
  close(found.loss, expected.loss)
  jax.tree.map(close, gradient, expected_gradient)


def test_tangent_training_has_its_formula(linear, batch):
  weights = np.asarray(linear[1]['logits']['kernel'], np.float64)
  logits = np.asarray(logits_of(linear)(batch.images), np.float64)
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  gradient = (probs - np.eye(CLASSES)[batch.labels]) @ weights.T
  along = np.einsum('bdk,bek,be->bd', batch.aux['tangents'], batch.aux['tangents'], gradient)
  moved = 0.7 * along / np.linalg.norm(along, axis=-1, keepdims=True) @ weights + logits
  expected = np.log(np.exp(moved).sum(-1)) - moved[np.arange(8), batch.labels]
  found, _ = run_method(functools.partial(methods.tangent, epsilon=0.7), *linear, batch)
  close(found.loss, expected)
  still, _ = run_method(functools.partial(methods.tangent, epsilon=0.), *linear, batch)
  plain, _ = run_method(methods.standard, *linear, batch)
  close(still.loss, plain.loss)
  several, _ = run_method(functools.partial(methods.tangent, epsilon=0.7, num_steps=3,
                                            random_start=True), *linear, batch)
  assert (several.loss <= found.loss + 1e-2).all() and np.isfinite(several.loss).all()


def test_a_batch_without_tangents_is_named(mlp, batch):
  for method in (functools.partial(methods.tangent, epsilon=1.), methods.tangent_penalty):
    with pytest.raises(ValueError, match='config.data.tangents'):
      run_method(method, *mlp, batch._replace(aux={}))


# Penalties.


@pytest.mark.parametrize('output', ['probabilities', 'logits'])
def test_penalties_against_central_differences(output, mlp, batch):
  jacobian = numpy_jacobian(mlp, batch.images, output)
  plain, _ = run_method(methods.standard, *mlp, batch)
  found, _ = run_method(
      functools.partial(methods.jacobian_penalty, weight=2., output=output), *mlp, batch)
  expected = np.sum(jacobian**2, axis=(1, 2))
  close(found.metrics['penalty'], expected, rtol=2e-2)
  close(found.loss, plain.loss + 2 * found.metrics['penalty'])
  found, _ = run_method(
      functools.partial(methods.tangent_penalty, weight=3., output=output), *mlp, batch)
  expected = np.sum(np.einsum('bcd,bdk->bck', jacobian, batch.aux['tangents'])**2, axis=(1, 2))
  close(found.metrics['penalty'], expected, rtol=2e-2)
  close(found.loss, plain.loss + 3 * found.metrics['penalty'])


def test_jacobian_is_the_tangent_penalty_in_the_whole_space(mlp, batch):
  whole = batch._replace(aux={'tangents': jnp.broadcast_to(jnp.eye(PIXELS), (8, PIXELS, PIXELS))})
  one, gradient = run_method(functools.partial(methods.tangent_penalty, weight=1.), *mlp, whole)
  other, same = run_method(functools.partial(methods.jacobian_penalty, weight=1.), *mlp, batch)
  close(one.loss, other.loss)
  jax.tree.map(close, gradient, same)


def test_projections_estimate_the_penalty_without_bias(linear, batch):
  # The Jacobian of a linear network's logits is its kernel, at every image.
  many = batch._replace(images=jnp.zeros((2000, 3, 4, 1)), labels=jnp.zeros(2000, jnp.int32),
                        index=jnp.arange(2000), mask=jnp.ones(2000))
  found, _ = run_method(functools.partial(methods.jacobian_penalty, weight=1., output='logits',
                                          num_projections=2), *linear, many)
  expected = np.sum(np.asarray(linear[1]['logits']['kernel'])**2)
  close(found.metrics['penalty'].mean(), expected, rtol=0.05)
  assert found.metrics['penalty'].std() > 0.01 * expected


@pytest.mark.parametrize('method', [
    functools.partial(methods.jacobian_penalty, weight=0.),
    functools.partial(methods.jacobian_penalty, weight=0., num_projections=1),
    functools.partial(methods.tangent_penalty, weight=0.),
    functools.partial(methods.vat, epsilon=1., weight=0.),
    functools.partial(methods.vat, epsilon=0.),
    functools.partial(methods.tangent, epsilon=0.),
])
def test_special_cases_are_standard_training(method, mlp, batch):
  expected, expected_gradient = run_method(methods.standard, *mlp, batch)
  found, gradient = run_method(method, *mlp, batch)
  close(found.loss, expected.loss)
  jax.tree.map(close, gradient, expected_gradient)


@pytest.mark.parametrize('method', [
    functools.partial(methods.jacobian_penalty, weight=0.5),
    functools.partial(methods.tangent_penalty, weight=0.5, output='logits'),
    functools.partial(methods.vat, epsilon=0.5, num_iterations=2),
    functools.partial(methods.tangent, epsilon=0.5),
])
def test_methods_are_finite_and_belong_to_examples(method, mlp, batch):
  # Saturated logits, and a network without any gradient.
  for scale in (1e4, 0.):
    params = jax.tree.map(lambda w, scale=scale: scale * w, mlp[1])
    output, gradient = run_method(method, mlp[0], params, batch)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((output, gradient)))
  # A batch is a loop of singles, in any order.
  whole, _ = run_method(method, *mlp, batch)
  for i in (5, 2):
    one, _ = run_method(method, *mlp, jax.tree.map(lambda x, i=i: x[i:i + 1], batch))
    close(one.loss[0], whole.loss[i], atol=1e-5)


@pytest.mark.parametrize('method', [
    functools.partial(methods.jacobian_penalty, weight=0.5),
    functools.partial(methods.tangent_penalty, weight=0.5, output='logits'),
])
def test_gradients_of_the_penalties_against_differences(method, batch):
  # A smooth network, whose second derivatives central differences can see.
  def logits(params, images):
    return jnp.tanh(images.reshape(len(images), -1) @ params['a']) @ params['b']

  network = Network(
      lambda variables: lambda images: logits(variables['params'], images),
      lambda params, stats, images, key: (logits(params, images), stats))
  rng = np.random.default_rng(4)
  params = {'a': jnp.asarray(rng.normal(size=(PIXELS, 5)), jnp.float32),
            'b': jnp.asarray(rng.normal(size=(5, CLASSES)), jnp.float32)}
  loss = jax.jit(lambda p: jnp.mean(method(keys.fold_in(KEY, batch.index), network, p, {}, batch,
                                           PROGRESS).loss))
  check_grads(loss, (params,), order=1, modes=['rev'], rtol=2e-2, atol=2e-2, eps=1e-2)


# Virtual adversarial training.


def test_virtual_direction_is_the_leading_eigenvector(linear, batch):
  # H = W (diag(p) - p p^T) W^T for a linear network.
  weights = np.asarray(linear[1]['logits']['kernel'], np.float64)
  logits = np.asarray(logits_of(linear)(batch.images), np.float64)
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  far = np.asarray(virtual_direction(KEY, logits_of(linear), batch.images, num_iterations=200))
  start = np.asarray(virtual_direction(KEY, logits_of(linear), batch.images, num_iterations=0))
  once = np.asarray(virtual_direction(KEY, logits_of(linear), batch.images))
  for i in range(8):
    hessian = weights @ (np.diag(probs[i]) - np.outer(probs[i], probs[i])) @ weights.T
    leading = np.linalg.eigh(hessian)[1][:, -1]
    assert abs(leading @ far[i].ravel()) > 0.999
    product = hessian @ start[i].ravel()
    close(once[i].ravel(), product / np.linalg.norm(product), atol=1e-4)


def test_vat_has_its_formula(mlp, batch):
  output, gradient = run_method(functools.partial(methods.vat, epsilon=0.8, weight=2.), *mlp, batch)
  direction = virtual_direction(keys.fold_in(keys.fold_in(KEY, batch.index), 0), logits_of(mlp),
                                batch.images)
  clean = np.asarray(logits_of(mlp)(batch.images), np.float64)
  moved = np.asarray(logits_of(mlp)(batch.images + 0.8 * direction), np.float64)
  log_p, log_q = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in (clean, moved))
  divergence = np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)
  close(output.metrics['kl'], divergence, rtol=1e-3, atol=1e-6)
  close(output.loss, 2 * divergence - log_p[np.arange(8), batch.labels])
  assert divergence.min() > 0

  # No gradient flows through F(x) of the divergence nor through the direction.
  def expected(params):
    f = mlp[0].eval_logits({'params': params, 'batch_stats': {}})
    target = jnp.asarray(clean, jnp.float32)
    return jnp.mean(losses.cross_entropy(f(batch.images), batch.labels)
                    + 2 * losses.kl_divergence(target, f(batch.images + 0.8 * direction)))
  jax.tree.map(close, gradient, jax.grad(expected)(mlp[1]))


def test_vat_takes_a_radius_for_each_example(mlp, batch):
  epsilon = np.linspace(0.1, 0.8, 8)
  output, _ = run_method(functools.partial(methods.vat, epsilon=epsilon), *mlp, batch)
  for i in (0, 7):
    alone, _ = run_method(functools.partial(methods.vat, epsilon=epsilon[i]), *mlp, batch)
    close(output.metrics['kl'][i], alone.metrics['kl'][i])


def test_vat_moves_a_prediction_more_than_a_random_direction(mlp, batch):
  found = virtual_direction(KEY, logits_of(mlp), batch.images, num_iterations=2)
  random = virtual_direction(KEY, logits_of(mlp), batch.images, num_iterations=0)
  moved = lambda d: losses.kl_divergence(logits_of(mlp)(batch.images),
                                         logits_of(mlp)(batch.images + 0.1 * d))
  assert moved(found).mean() > 2 * moved(random).mean()


# Tangents of a dataset.


@pytest.fixture(scope='module')
def plane():
  """A dataset whose two classes lie in a plane each, of 6x1x1 images."""
  rng = np.random.default_rng(3)
  labels = np.arange(60) % 2
  planes = np.linalg.qr(rng.normal(size=(2, 6, 2)))[0]
  points = 128 + 60 * np.einsum('ndk,nk->nd', planes[labels], rng.uniform(-1, 1, (60, 2)))
  dataset = data.Dataset('planes', 'train', points.round().astype(np.uint8).reshape(60, 6, 1, 1),
                         labels.astype(np.int32), ('a', 'b'), 0., 1.)
  return dataset, planes


def test_tangents_span_the_plane_of_the_data(plane):
  dataset, planes = plane
  rows = data.load_tangents(dataset, 8, num_directions=2, num_neighbors=10)
  index = np.array([4, 7, 30])
  basis = rows[index]
  assert basis.shape == (3, 6, 2) and basis.dtype == np.float32
  for i, found in zip(index, basis):
    np.testing.assert_allclose(found.T @ found, np.eye(2), atol=1e-5)
    truth = planes[dataset.labels[i]]
    assert np.linalg.norm(truth.T @ found) > 0.99 * np.sqrt(2)


def test_neighbors_are_the_nearest_of_the_class(plane):
  dataset, _ = plane
  found = tangents.nearest_neighbors(dataset.images, dataset.labels, 4)
  flat = dataset.images.reshape(60, -1).astype(float)
  for i in range(60):
    distances = np.sum((flat - flat[i])**2, axis=-1)
    distances[dataset.labels != dataset.labels[i]] = np.inf
    distances[i] = np.inf
    assert i not in found[i] and len(set(found[i])) == 4
    np.testing.assert_allclose(np.sort(distances[found[i]]), np.sort(distances)[:4])


def test_batches_carry_the_tangents_of_their_images(plane, tmp_path):
  dataset, _ = plane
  basis = np.linalg.qr(np.random.default_rng(5).normal(size=(60, 6, 2)))[0]
  np.save(tmp_path / 'basis.npy', basis)
  rows = data.load_tangents(dataset, 8, num_directions=2, num_neighbors=1,
                            file=str(tmp_path / 'basis.npy'))
  batches = list(data.train_batches(dataset, batch_size=8, seed=0, num_steps=8, tangents=rows))
  for batch in batches:
    real = batch.mask > 0
    np.testing.assert_allclose(batch.aux['tangents'][real], basis[batch.index[real]], rtol=1e-6)
    assert batch.aux['tangents'].shape == (8, 6, 2)
  with pytest.raises(UserError, match="config.data.augment .*'crop'"):
    data.train_batches(dataset, batch_size=8, seed=0, num_steps=8, tangents=rows, augment='crop')


def test_tangents_that_cannot_be_are_refused(plane, tmp_path):
  dataset, _ = plane
  load = functools.partial(data.load_tangents, dataset, 8, num_directions=2)
  with pytest.raises(UserError, match=r'config.data.tangent_neighbors .* 2 .* 29 .*got 30'):
    load(num_neighbors=30)
  with pytest.raises(UserError, match='config.data.tangent_neighbors .*got 1'):
    load(num_neighbors=1)
  with pytest.raises(UserError, match='config.data.tangents .* 6, .*got 10'):
    load(num_directions=10, num_neighbors=12)
  with pytest.raises(UserError, match='config.data.tangents .*100000000 .*got 2'):
    data.load_tangents(dataset, 10**8, num_directions=2, num_neighbors=5)
  np.save(tmp_path / 'few.npy', np.zeros((59, 6, 2)))
  np.save(tmp_path / 'zero.npy', np.zeros((60, 6, 2)))
  shapes = r'config.data.tangents_file .*\(60, 6, 2\), got float64 .*\(59, 6, 2\)'
  with pytest.raises(UserError, match=shapes):
    load(num_neighbors=5, file=str(tmp_path / 'few.npy'))
  with pytest.raises(UserError, match='config.data.tangents_file .*orthonormal'):
    load(num_neighbors=5, file=str(tmp_path / 'zero.npy'))
  with pytest.raises(UserError, match='config.data.tangents_file .*none.npy'):
    load(num_neighbors=5, file=str(tmp_path / 'none.npy'))
  # What takes the place of a file is not taken for it.
  np.save(tmp_path / 'zero.npy', np.linalg.qr(np.ones((60, 6, 2)) + np.eye(6, 2))[0])
  first = load(num_neighbors=5, file=str(tmp_path / 'zero.npy'))[0]
  np.save(tmp_path / 'new.npy', np.broadcast_to(np.eye(6, 2), (60, 6, 2)))
  (tmp_path / 'new.npy').replace(tmp_path / 'zero.npy')
  again = load(num_neighbors=5, file=str(tmp_path / 'zero.npy'))[0]
  assert not np.allclose(first, again) and np.allclose(again, np.eye(6, 2))


# Configs.


def built(*words):
  config = flags.parse(['launch', *words]).config
  return experiment.build(sections.resolve(config), jax.devices()[:2])


@pytest.mark.parametrize('words, message', [
    (['--config=configs/digits.py:tangent', '--config.data.tangents=0'],
     "config.data.tangents must be 1 .*'tangent'.* got 0"),
    (['--config.method.name=tangent_penalty', '--config.method.weight=1.0'],
     "config.data.tangents must be 1 .*'tangent_penalty'.* got 0"),
    (['--config.method.attack.name=lbfgs'],
     "config.method.attack.name must be one of .* got 'lbfgs'"),
])
def test_what_does_not_go_together_is_refused_before_training(words, message):
  with pytest.raises(UserError, match=message):
    built(*words)


def test_a_run_trains_with_tangents(tmp_path):
  run = built('--config=configs/digits.py:tangent', '--config.train.num_steps=3',
              '--config.train.log_every=1', '--config.data.tangents=2',
              '--config.data.tangent_neighbors=3')
  workdir.describe(run, tmp_path, [])
  stages.run_stage('train', run, tmp_path)
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  epsilons = [line['epsilon'] for line in lines if line['split'] == 'train']
  assert epsilons == pytest.approx([1.] * 3) and np.isfinite(lines[-1]['loss'])


def test_images_can_be_padded():
  plain, padded = data.load('digits', 'test'), data.load('digits', 'test', pad=2)
  assert padded.image_shape == (12, 12, 1)
  np.testing.assert_array_equal(padded.images[:, 2:-2, 2:-2], plain.images)
  assert padded.images.sum() == plain.images.sum()
  with pytest.raises(UserError, match='config.data.pad .*got 2'):
    data.load('digits', 'test', pad=2, in_memory_bytes=0)
