"""Adversarial training with restarts, targets and a share of clean loss."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import flags
from robust_jax import attacks, keys, losses
from robust_jax.config import experiment, sections
from robust_jax.training import methods
from robust_jax.types import Batch, Network, Progress

ROOT = Path(__file__).parents[1]
KEY = jax.random.key(5)
PROGRESS = Progress(jnp.asarray(0), jnp.asarray(0), jnp.asarray(0.))
PGD = functools.partial(attacks.pgd_attack, norm='linf', num_steps=1, random_start=True)


@pytest.fixture(scope='module')
def network():
  """A tanh network, on which random starts matter: (network, params, logits_fn)."""
  weights = np.random.default_rng(1).normal(size=(2, 16, 16)).astype(np.float32)

  def logits(params, images):
    return jnp.tanh(3 * images.reshape(len(images), -1) @ params[0]) @ params[1][:, :4]

  made = Network(
      eval_logits=lambda variables: jax.tree_util.Partial(logits, variables['params']),
      train_logits=lambda params, stats, images, key: (logits(params, images), stats))
  return made, jnp.asarray(weights), jax.tree_util.Partial(logits, jnp.asarray(weights))


@pytest.fixture(scope='module')
def batch(network):
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.uniform(size=(32, 4, 4, 1)), jnp.float32)
  labels = jnp.argmax(network[2](images), axis=-1).astype(jnp.int32)
  return Batch(images, labels, jnp.arange(32, dtype=jnp.int32), jnp.ones(32))


def train(network, batch, **kwargs):
  return jax.jit(lambda: methods.adversarial(
      keys.fold_in(KEY, batch.index), network[0], network[1], {}, batch, PROGRESS,
      **{'epsilon': 0.05, **kwargs}))()


def test_restarts_train_on_the_worst_start_of_each_example(network, batch):
  once = train(network, batch, attack=PGD)
  often = train(network, batch, attack=functools.partial(PGD, restarts=8))
  # Never right where it was wrong before, and among equals of a larger loss.
  assert (often.metrics['accuracy'] <= once.metrics['accuracy']).all()
  same = np.asarray(often.metrics['accuracy'] == once.metrics['accuracy'])
  assert (often.loss >= once.loss - 1e-5)[same].all() and (often.loss > once.loss + 1e-3).sum() > 8


@pytest.mark.parametrize('target', ['random', 'least_likely'])
def test_targets_train_on_the_label_where_another_class_is_aimed_at(target, network, batch):
  attack = functools.partial(PGD, target=target, num_steps=5, random_start=False)
  output = train(network, batch, attack=attack, epsilon=0.3)
  found = attack(keys.fold_in(keys.fold_in(KEY, batch.index), 0), network[2], batch.images,
                 batch.labels, epsilon=0.3)
  # The loss and accuracy are those of the label, at the images that the attack has made.
  logits = np.asarray(network[2](found.images))
  np.testing.assert_allclose(output.loss, losses.cross_entropy(logits, batch.labels), rtol=1e-3,
                             atol=1e-3)
  predicted = logits.argmax(-1)
  np.testing.assert_array_equal(output.metrics['accuracy'], predicted == batch.labels)
  clean = np.asarray(network[2](batch.images))
  assert np.mean(output.loss) > np.mean(losses.cross_entropy(clean, batch.labels))
  # Success is to reach the target, not only to leave the label.
  assert found.success.any() and not found.success[predicted == batch.labels].any()
  if target == 'least_likely':
    np.testing.assert_array_equal(found.success, predicted == clean.argmin(-1))
    assert ((predicted != batch.labels) & ~np.asarray(found.success)).any()


def test_targeted_restarts_keep_what_reaches_the_target(network, batch):
  attack = functools.partial(PGD, target='random')
  example_keys = keys.fold_in(KEY, batch.index)
  reached = [attack(example_keys, network[2], batch.images, batch.labels, epsilon=0.15,
                    restarts=restarts).success for restarts in (1, 8)]
  assert (reached[1] >= reached[0]).all() and reached[1].sum() > reached[0].sum()


def test_a_share_of_clean_loss_goes_with_both(network, batch):
  attack = functools.partial(PGD, restarts=3, target='least_likely')
  attacked, mixed = (train(network, batch, attack=attack, clean_share=share).loss
                     for share in (0., 0.3))
  clean = losses.cross_entropy(network[2](batch.images), batch.labels)
  np.testing.assert_allclose(mixed, 0.7 * attacked + 0.3 * clean, rtol=1e-4, atol=1e-5)


def test_their_configs_say_so(monkeypatch):
  monkeypatch.chdir(ROOT)
  for name, field, value in (('pgd_restarts', 'restarts', 4), ('pgd_targeted', 'target', 'random')):
    config = flags.parse(['launch', f'--config=configs/digits.py:{name}']).config
    run = experiment.build(sections.resolve(config), jax.devices()[:2])
    assert run.method.keywords['attack'].keywords[field] == value
    assert run.method.keywords['clean_share'] == (0.3 if name == 'pgd_restarts' else 0)
