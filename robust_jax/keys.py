"""Randomness per example: the same draws on any number of devices and in any batch.

Every `key` argument of this project takes one key, from which example i uses fold_in(key, i), or
a [batch] array of keys. Keys of examples come from the example's index, never from its place in
a batch, on a device or on a host.
"""

import jax
import jax.numpy as jnp


def root(seed):
  """The root key of a run. threefry, because vmapped rbg keys do not equal a loop of them."""
  return jax.random.key(seed, impl='threefry2x32')


def as_key(key):
  """`key` as a typed key array; raw uint32 keys (`jax.random.PRNGKey`) are wrapped."""
  key = jnp.asarray(key)
  if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    return key
  return jax.random.wrap_key_data(key, impl='threefry2x32')


def per_example(key, batch):
  """One key per example: [batch] keys.

  Args:
    key: one key (example i gets fold_in(key, i)) or [batch] keys (returned as they are).
    batch: number of examples.

  Raises:
    ValueError: `key` is an array of another length.
  """
  key = as_key(key)
  if key.ndim == 0:
    return fold_in(key, jnp.arange(batch))
  if key.shape != (batch,):
    raise ValueError(f'key has shape {key.shape}; one key or ({batch},) keys are allowed')
  return key


def uses(key, batch, count):
  """Keys for several uses of one key: [count] of [batch] keys, one per example each.

  Args:
    key: as `per_example`.
    batch: number of examples.
    count: number of uses; use u of an example with key k gets fold_in(k, u).
  """
  key = per_example(key, batch)
  return [fold_in(key, use) for use in range(count)]


def fold_in(key, data):
  """fold_in over arrays: key [] or [batch], data [] or [batch] -> key [] or [batch]."""
  key, data = as_key(key), jnp.asarray(data)
  if key.ndim == 0 and data.ndim == 0:
    return jax.random.fold_in(key, data)
  axes = (0 if key.ndim else None, 0 if data.ndim else None)
  return jax.vmap(jax.random.fold_in, axes)(key, data)
