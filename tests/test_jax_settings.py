"""jax as others set it up: keys of other kinds, strict promotion, float64, missing devices.

Settings of the environment of a run are tried in processes of their own.
"""

import contextlib
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_training

from robust_jax import attacks, certification, keys, models, smoothing
from robust_jax.training import methods, schedules
from robust_jax.types import Progress

ROOT = Path(__file__).parents[1]
CERTIFY = dict(sigma=0.25, n0=10, n=50, alpha=0.01)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 3, 4, 1)) / np.float32(255)
LABELS = np.array([0, 1, 2, 3], np.int32)
# What draws from keys: each with [batch] keys gives rows that depend on their own key only.
DRAWS = {
    'sample_noise': lambda key, f, x, y: jnp.moveaxis(smoothing.sample_noise(
        key, x, sigma=1., num_noise=2), 1, 0),
    'pgd l2': lambda key, f, x, y: attacks.pgd_attack(
        key, f, x, y, epsilon=0.5, norm='l2', num_steps=2, random_start=True).images,
    'pgd l1': lambda key, f, x, y: attacks.pgd_attack(
        key, f, x, y, epsilon=0.5, norm='l1', num_steps=2, random_start=True, restarts=2).images,
    'pgd linf': lambda key, f, x, y: attacks.pgd_attack(
        key, f, x, y, epsilon=0.1, num_steps=2, random_start=True, target='random').images,
    'apgd': lambda key, f, x, y: attacks.apgd_attack(
        key, f, x, y, epsilon=0.1, num_steps=3).images,
    'apgd l1': lambda key, f, x, y: attacks.apgd_attack(
        key, f, x, y, epsilon=0.5, norm='l1', num_steps=3).images,
    'square linf': lambda key, f, x, y: attacks.square_attack(
        key, f, x, y, epsilon=0.1, num_queries=3).images,
    'square l2': lambda key, f, x, y: attacks.square_attack(
        key, f, x, y, epsilon=0.5, norm='l2', num_queries=3).images,
    'fab': lambda key, f, x, y: attacks.fab_attack(
        key, f, x, y, epsilon=0.1, num_steps=3, restarts=2).images,
    'fab l1': lambda key, f, x, y: attacks.fab_attack(
        key, f, x, y, epsilon=1., norm='l1', num_steps=3, num_targets=2, restarts=2).images,
    'carlini_wagner': lambda key, f, x, y: attacks.carlini_wagner(
        key, f, x, y, epsilon=1., num_steps=3, num_constants=2, initial_constant=1.).images,
    'ddn': lambda key, f, x, y: attacks.ddn(key, f, x, y, epsilon=0.5, num_steps=3).images,
}


@pytest.mark.parametrize('name', DRAWS)
def test_keys_of_another_kind_draw_the_same_in_any_batch(name, mlp_fn):
  key = jax.random.split(jax.random.key(3, impl='rbg'), len(IMAGES))
  draw = jax.jit(DRAWS[name])
  together = draw(key, mlp_fn, IMAGES, LABELS)
  alone = draw(key[2:3], mlp_fn, IMAGES[2:3], LABELS[2:3])
  np.testing.assert_allclose(together[2:3], alone, atol=1e-6, err_msg=name)
  assert name != 'sample_noise' or not np.allclose(together[2], together[1])


@pytest.mark.parametrize('impl', ['rbg', 'unsafe_rbg'])
def test_one_key_of_another_kind_serves_as_any(impl, mlp_fn):
  key, other = jax.random.key(3, impl=impl), jax.random.key(4, impl=impl)
  raw = jax.random.key_data(key)
  as_data = lambda key: jax.random.key_data(keys.as_key(key)).tolist()
  assert as_data(key) == as_data(raw) == as_data(jax.jit(keys.as_key)(key)) != as_data(other)
  found = certification.certify(key, mlp_fn, IMAGES, **CERTIFY)
  again = certification.certify(raw, mlp_fn, IMAGES, **CERTIFY)
  np.testing.assert_array_equal(found.counts, again.counts)
  assert certification.predict(key, mlp_fn, IMAGES, sigma=0.25, n=50, alpha=0.01).shape == (4,)


def test_threefry_keys_are_taken_as_they_are():
  key = jax.random.key(3, impl='threefry2x32')
  for given in (key, jax.random.key_data(key)):
    assert keys.as_key(given) == key


CALLS = {
    **DRAWS,
    'ddn noise': lambda key, f, x, y: attacks.ddn(
        key, f, x, y, epsilon=0.5, num_steps=3, gamma=0., init_norm=0.,
        noise=smoothing.sample_noise(key, x, sigma=0.25, num_noise=2)).images,
    'certify': lambda key, f, x, y: certification.certify(key, f, x, **CERTIFY).counts,
    'certify integer': lambda key, f, x, y: certification.certify(
        key, f, x, **CERTIFY, noise='integer').counts,
    'warm_up': lambda key, f, x, y: schedules.warm_up(1., jnp.int32(3), 10),
}


@pytest.mark.parametrize('settings', [
    [functools.partial(jax.numpy_dtype_promotion, 'strict'),
     functools.partial(jax.debug_nans, True)],
    [functools.partial(jax.enable_x64, True)]], ids=['strict', 'x64'])
@pytest.mark.parametrize('name', CALLS)
def test_functions_give_the_same_under_other_settings(name, settings, mlp_fn):
  key = jax.random.key(0, impl='threefry2x32')
  call = CALLS[name] if 'certify' in name else jax.jit(CALLS[name])
  expected = call(key, mlp_fn, IMAGES, LABELS)
  with contextlib.ExitStack() as stack:
    for setting in settings:
      stack.enter_context(setting())
    found = call(key, mlp_fn, IMAGES, LABELS)
  assert found.dtype == expected.dtype
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize('name', ['iaat', 'smoothadv', 'mtl_ibp'])
def test_methods_of_training_allow_strict_promotion(name):
  model, variables = tiny_training.small_net(jax.random.key(0))
  batch = tiny_training.random_batch(3)
  fields = {'iaat': {}, 'smoothadv': dict(epsilon=0.1, sigma=0.25, epsilon_warmup_epochs=3),
            'mtl_ibp': dict(epsilon=0.1, ramp_epochs=3., ramp='smooth', regularizer=0.5)}[name]
  batch = batch._replace(aux={'radius': jnp.full(3, 0.1)} if name == 'iaat' else {})
  method = functools.partial(methods.METHODS[name], attack=functools.partial(
      attacks.pgd_attack, num_steps=1), **fields)
  with jax.numpy_dtype_promotion('strict'):
    output, _ = tiny_training.run_method(
        method, models.network(model), variables['params'], batch, variables['batch_stats'],
        progress=Progress(jnp.int32(3), jnp.int32(12), jnp.float32(12.5)), key=jax.random.key(1))
  assert np.isfinite(output.loss).all()


def run(code, **environment):
  kept = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  return subprocess.run([sys.executable, '-c', code], env={**kept, **environment}, cwd=ROOT,
                        capture_output=True, text=True)


def test_a_run_is_compiled_and_float32_whatever_the_environment_says():
  code = """
from robust_jax import backend
backend.tune()
import jax, jax.numpy as jnp
print(jnp.ones(2).dtype, jax.config.jax_disable_jit, (jnp.ones(2) * jnp.arange(2)).dtype)
"""
  done = run(code, JAX_ENABLE_X64='1', JAX_DISABLE_JIT='1', JAX_NUMPY_DTYPE_PROMOTION='strict')
  assert done.stdout.split() == ['float32', 'False', 'float32'], done.stderr
  lines = done.stderr.splitlines()
  assert [line.split()[1] for line in lines] == ['JAX_ENABLE_X64', 'JAX_DISABLE_JIT']
  assert run(code).stderr == ''


@pytest.mark.parametrize('platforms', ['cuda', 'gpu', 'nonsense'])
def test_a_platform_that_is_not_there_is_named(platforms):
  code = """
from robust_jax import errors
from robust_jax.devices.choose import choose_devices
try:
  choose_devices(0, [8])
except errors.UserError as error:
  print(error)
"""
  done = run(code, JAX_PLATFORMS=platforms)
  assert f'JAX_PLATFORMS is {platforms!r}, which jax cannot use' in done.stdout, done.stderr
  assert done.stdout.count('\n') == 1
