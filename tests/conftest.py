"""Eight simulated CPU devices, and small classifiers that several tests use."""

import os

# Tests compile much and compute little: without LLVM's optimisation they take a third of the time.
# Without it products and sums are not rounded together either, which bounds have to withstand: see
# test_network_bounds.optimised.
os.environ['XLA_FLAGS'] = ' '.join(
    [os.environ.get('XLA_FLAGS', ''), '--xla_backend_optimization_level=0',
     '--xla_force_host_platform_device_count=8'])
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# What launched commands compile is shared among them, and does not touch the user's own cache.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.abspath('.pytest_cache/compilations'))

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# Programs of this process are compiled once: to keep them on disk as well only takes time.
jax.config.update('jax_enable_compilation_cache', False)


@pytest.fixture(scope='module', autouse=True)
def forget_programs():
  """Drops what a file has compiled.

  Every program keeps memory maps, of which a process may have 65,530 (Linux's vm.max_map_count);
  those of half of the tests are more, and XLA's next compilation is then a segmentation fault.
  """
  yield
  jax.clear_caches()


def linear_logits(weights, bias, images):
  """Logits [batch, classes] of a linear classifier: weights [pixels, classes]."""
  return images.reshape(len(images), -1) @ weights + bias


def mlp_logits(params, images):
  """Logits of a one-hidden-layer tanh network: smooth, so that gradients can be compared."""
  hidden = jnp.tanh(images.reshape(len(images), -1) @ params['w1'])
  return hidden @ params['w2']


@pytest.fixture(scope='session')
def linear_fn():
  """A random linear classifier of 3x4x1 images, 4 classes, as a LogitsFn."""
  rng = np.random.default_rng(0)
  weights = jnp.asarray(rng.normal(size=(12, 4)), jnp.float32)
  return jax.tree_util.Partial(linear_logits, weights, jnp.zeros(4))


@pytest.fixture(scope='session')
def mlp_fn():
  """A random tanh network of 3x4x1 images, 4 classes, as a LogitsFn."""
  rng = np.random.default_rng(1)
  params = {'w1': jnp.asarray(rng.normal(size=(12, 16)), jnp.float32),
            'w2': jnp.asarray(rng.normal(size=(16, 4)), jnp.float32)}
  return jax.tree_util.Partial(mlp_logits, params)


@pytest.fixture(scope='session')
def images():
  """Five images [5, 3, 4, 1]; the first touches both ends of the box."""
  x = np.random.default_rng(2).uniform(size=(5, 3, 4, 1)).astype(np.float32)
  x[0].flat[:6] = [0, 0, 0, 1, 1, 1]
  return jnp.asarray(x)


@pytest.fixture(scope='session')
def labels():
  return jnp.asarray([0, 1, 2, 3, 1])


@pytest.fixture(scope='session')
def test_data_dir():
  """Folder with real data (tfds/, reference_logs/), named by ROBUST_JAX_TEST_DATA."""
  folder = os.environ.get('ROBUST_JAX_TEST_DATA')
  if not folder or not Path(folder).is_dir():
    pytest.skip('ROBUST_JAX_TEST_DATA names no folder of real data')
  return Path(folder)
