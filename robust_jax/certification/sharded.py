"""Votes counted on several devices."""

import functools

import jax
import numpy as np

from robust_jax.certification import sampling
from robust_jax.devices import parallel


def sharded_count(devices):
  """`certification.count` with its forward passes shared out over devices.

  Each pass has the same shape and draws as on one device, so the counts are the same. The same
  devices give the same function, so that stages which count alike compile it once.
  """
  return _sharded_count(tuple(devices))


@functools.cache
def _sharded_count(devices):
  shards = np.arange(len(devices))

  @functools.cache
  def mapped(batch_size, noise_fn):
    def count_shard(key, logits_fn, images, example_ids, start, num, sigma, shard):
      votes = sampling.count(
          key, logits_fn, images, example_ids, start, num, sigma=sigma, batch_size=batch_size,
          shard=shard, num_shards=len(devices), noise_fn=noise_fn)
      return jax.lax.psum(votes, parallel.AXIS)

    return parallel.map_devices(count_shard, devices, in_axes=(None,) * 7 + (0,), out_axes=None)

  def count(key, logits_fn, images, example_ids, start, num, *, sigma, batch_size,
            noise_fn=sampling.gaussian_noise):
    sampling.check_draws(len(images), start, num, batch_size)
    if not isinstance(logits_fn, jax.tree_util.Partial):
      logits_fn = jax.tree_util.Partial(logits_fn)
    start, num = (np.broadcast_to(np.asarray(value, np.int32), len(images))
                  for value in (start, num))
    return mapped(batch_size, noise_fn)(
        key, logits_fn, np.asarray(images, np.float32), np.asarray(example_ids, np.int32),
        start, num, sigma, shards)

  return count
