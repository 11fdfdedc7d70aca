"""Randomness per example: the same draws on any number of devices and in any batch.

Noise is Gaussian, of bits that no version or flag of jax changes, and cheap to draw under vmap.

Every `key` argument of this project takes one key, from which example i uses fold_in(key, i), or
a [batch] array of keys. Keys of examples come from the example's index, never from its place in
a batch, on a device or on a host.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def root(seed):
  """The root key of a run. threefry, because vmapped rbg keys do not equal a loop of them."""
  return jax.random.key(seed, impl='threefry2x32')


def as_key(key):
  """`key` as typed threefry keys, from which all draws come.

  Raw uint32 keys (`jax.random.PRNGKey`) are wrapped. Of another kind, as rbg, the key's words are
  folded, one after the other, into threefry's key 0: rbg itself, vmapped, would draw other numbers
  in another batch.

  Args:
    key: typed or raw, one key or [batch] keys.

  Raises:
    ValueError: it is no key.
  """
  key = jnp.asarray(key)
  if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    if jax.random.key_impl(key) == 'threefry2x32':
      return key
    key = jax.random.key_data(key)
  # Raw keys have two words in threefry, four in rbg.
  elif key.dtype != jnp.uint32 or key.ndim == 0 or key.shape[-1] not in (2, 4):
    raise ValueError(f'key must be a key such as jax.random.key(0), got {key.dtype} of shape '
                     f'{key.shape}')
  if key.shape[-1] == 2:
    return jax.random.wrap_key_data(key, impl='threefry2x32')
  return functools.reduce(fold_in, jnp.moveaxis(key, -1, 0), root(0))


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
    raise ValueError(f'key must be one key or of shape ({batch},), got shape {key.shape}')
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


def standard_normal(key, shape):
  """sqrt(2) erfinv(u), u uniform on a grid of 2^23 values in (-1, 1).

  These are the values of jax.random.normal(key, shape), at a quarter of its cost on CPU, where
  jax rolls threefry's rounds into a loop over arrays in memory: written out, they fuse with what
  follows. The grid bounds them by 5.42 in absolute value.

  Args:
    key: one threefry key.
    shape: shape of the noise.

  Returns:
    [*shape] float32: bfloat16 has too few values for a sound certificate.
  """
  first, second = random_words(key, math.prod(shape))
  # The 23 high bits as the mantissa of a float in [1, 2).
  bits = (first ^ second) >> 9 | jnp.uint32(0x3F800000)
  fraction = jax.lax.bitcast_convert_type(bits, jnp.float32) - 1
  low = np.nextafter(np.float32(-1), np.float32(0))
  uniform = jnp.maximum(low, fraction * (1 - low) + low)
  return (np.float32(math.sqrt(2)) * jax.lax.erf_inv(uniform)).reshape(shape)


def random_words(key, num):
  """64 random bits for each of `num` pixels: threefry-2x32, 20 rounds, of the counters (0, i).

  Args:
    key: one threefry key.
    num: number of pixels.

  Returns:
    Two arrays [num] uint32.

  Reference: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
  """
  counters = jnp.arange(num, dtype=jnp.uint32)
  k0, k1 = jax.random.key_data(key)
  schedule = (k0, k1, k0 ^ k1 ^ jnp.uint32(0x1BD11BDA))
  x0, x1 = jnp.full_like(counters, k0), counters + k1
  for group in range(5):
    for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
      x0 = x0 + x1
      x1 = x0 ^ (x1 << rotation | x1 >> (32 - rotation))
    x0 = x0 + schedule[(group + 1) % 3]
    x1 = x1 + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
  return x0, x1
