"""Votes of the base classifier under noise: the part of a certificate that costs time.

Two promises make the votes a fact about (parameters, image, example id, draw) and of nothing
else. The noise of a draw depends on its key alone, fold_in(fold_in(phase key, example id), draw
index). And every forward pass has the same shape, [batch_size, ...], because XLA rounds logits
differently at different shapes. So images a call, ranges of draws, devices and resumption may
vary; batch_size may not.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from robust_jax import inputs, keys, smoothing
from robust_jax.devices import parallel
from robust_jax.keys import standard_normal

# Folded into the key, so that the draws that select a class never bound its probability. Far
# above any training step, so that no draw of a certificate was ever trained on.
SELECT = 2**31 - 1
ESTIMATE = 2**31 - 2
PREDICT = 2**31 - 3

INT32_MAX = 2**31 - 1


def gaussian_noise(key, shape, sigma):
  """N(0, sigma^2) noise for one row, [*shape] float32; see `keys.standard_normal`.

  `count` takes any function of one key, a shape and the traced sigma in its place.
  """
  return sigma * standard_normal(key, shape)


def check_draws(batch, start, num, batch_size):
  """Raises ValueError, in one line, where `count` could not number its draws or rows in int32.

  Arguments as in `count`, batch the number of images. Of [batch] numbers of draws some may be 0.
  """
  values = {name: np.asarray(value, np.int64) for name, value in (('start', start), ('num', num))}
  for name, value in values.items():
    if value.shape not in ((), (batch,)):
      raise ValueError(f'{name} must have shape () or {(batch,)}, got {value.shape}')
  start, num = values.values()
  for name, value, low in (('len(images)', batch, 1), ('start', start, 0),
                           ('num', num, 0 if num.ndim else 1), ('batch_size', batch_size, 1)):
    inputs.check(name, value, value >= low, f'at least {low}')
  last = start + num
  inputs.check('start + num', last, last <= INT32_MAX, f'at most {INT32_MAX}')
  rows = int(num.sum()) if num.ndim else batch * int(num)
  if rows + batch_size > INT32_MAX:
    raise ValueError(f'the rows of one call must be at most {INT32_MAX - batch_size}, got {rows} '
                     f'({batch} images, num {num.max()})')


def count(key, logits_fn, images, example_ids, start, num, *, sigma, batch_size,
          shard=0, num_shards=1, noise_fn=gaussian_noise):
  """Votes of draws start, ..., start + num - 1 for each image.

  counts[i, c] = #{j : argmax logits_fn(images[i] + noise(i, j)) = c}. The rows of image i follow
  those of image i - 1: row r is draw start[i] + r - first[i] of the image i with first[i] <= r <
  first[i + 1], first the sums of num. Pass p holds rows p * batch_size, ...; rows of several
  images share a pass, an image of 0 draws costs nothing, and the last pass alone is padded, with
  rows that do not vote. A row with a NaN among its logits, or a pixel that is not
  finite, votes for no class, so that sum_c counts[i, c] <= num[i].

  One compilation serves every start, num, sigma and shard, and every logits_fn that is a pytree
  of the same structure and shapes (`jax.tree_util.Partial`, such as Network.eval_logits gives). A
  plain function, which may read what changes, is compiled at each call.

  Args:
    key: one key, that of the phase (root with the phase folded in), or [batch] keys, as images
      may be in different phases.
    logits_fn: [batch_size, ...] -> [batch_size, classes]; a row's logits depend on that row only.
    images: [batch, ...] float32, pixel units.
    example_ids: [batch] int32; with the draw's index they decide the noise.
    start: index of the first draw: one int, or [batch] of them, traced.
    num: number of draws of each image: one int, or [batch] of them that may be 0, traced.
    sigma: standard deviation of the noise, pixel units, traced. Inside another jit or pmap it
      has to be an argument of that: XLA folds a constant sigma into the noise, which rounds
      differently in the last bit.
    batch_size: rows of a forward pass, static.
    shard: run the passes p with p % num_shards == shard only, traced. The sum over all shards
      is the result for num_shards=1.
    num_shards: see shard; traced.
    noise_fn: (key, shape, sigma) -> float32 noise of one row, static.

  Returns:
    [batch, classes] int32.

  Raises:
    ValueError: draws or rows that int32 cannot number (`check_draws`; only where start and num
      are not traced), or example_ids of another shape than [batch].
  """
  images = jnp.asarray(inputs.images(images, in_box=False))
  example_ids = jnp.asarray(inputs.labels(example_ids, len(images), name='example_ids'), jnp.int32)
  if not isinstance(start, jax.core.Tracer) and not isinstance(num, jax.core.Tracer):
    check_draws(len(images), start, num, batch_size)
  logits_fn = smoothing.as_pytree(logits_fn)
  start, num, shard, num_shards = (
    jnp.asarray(value, jnp.int32) for value in (start, num, shard, num_shards)
  )
  start, num = (jnp.broadcast_to(value, example_ids.shape) for value in (start, num))
  sigma = jnp.asarray(sigma, jnp.float32)
  return _count(
    keys.as_key(key), logits_fn, images, example_ids, start, num, sigma, shard, num_shards,
    batch_size=batch_size, noise_fn=noise_fn,
  )


@functools.partial(jax.jit, static_argnames=('batch_size', 'noise_fn'))
def _count(key, logits_fn, images, example_ids, start, num, sigma, shard, num_shards, *,
           batch_size, noise_fn):
  batch, *shape = images.shape
  row_shape = jax.ShapeDtypeStruct((batch_size, *shape), images.dtype)
  num_classes = inputs.num_classes(logits_fn, row_shape)
  image_keys = keys.fold_in(key, example_ids)
  ends = jnp.cumsum(num)
  # What is to be added to the number of a row of image i to have that of its draw.
  offsets = start - (ends - num)
  rows = ends[-1]
  passes = (rows + batch_size - 1) // batch_size

  def run_pass(step, counts):
    row = (shard + step * num_shards) * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    votes = row < rows
    row = jnp.where(votes, row, 0)
    image = jnp.searchsorted(ends, row, side='right', method='scan_unrolled')
    draw = offsets[image] + row
    noise = jax.vmap(lambda k: noise_fn(k, tuple(shape), sigma))(
      keys.fold_in(image_keys[image], draw)
    )
    noisy = images[image] + noise
    logits = logits_fn(noisy)
    # A classifier may lose NaN on its way: XLA:CPU's maximum of NaN and 0 can be 0.
    votes &= jnp.isfinite(noisy).all(axis=tuple(range(1, noisy.ndim)))
    votes &= ~jnp.isnan(logits).any(axis=-1)
    return counts.at[image, logits.argmax(axis=-1)].add(votes.astype(jnp.int32))

  steps = (passes - shard + num_shards - 1) // num_shards
  return jax.lax.fori_loop(0, steps, run_pass, jnp.zeros((batch, num_classes), jnp.int32))


def sharded_count(devices):
  """`count` with its forward passes shared out over devices.

  Each pass has the same shape and draws as on one device, so the counts are the same. The same
  devices give the same function, so that stages which count alike compile it once.
  """
  return _sharded_count(tuple(devices))


@functools.cache
def _sharded_count(devices):
  shards = parallel.numbers(devices)

  @functools.cache
  def mapped(batch_size, noise_fn):
    def count_shard(key, logits_fn, images, example_ids, start, num, sigma, shard):
      votes = count(
          key, logits_fn, images, example_ids, start, num, sigma=sigma, batch_size=batch_size,
          shard=shard, num_shards=len(devices), noise_fn=noise_fn)
      return jax.lax.psum(votes, parallel.AXIS)

    return parallel.map_devices(count_shard, devices, in_axes=(None,) * 7 + (0,), out_axes=None)

  def count_on_devices(key, logits_fn, images, example_ids, start, num, *, sigma, batch_size,
                       noise_fn=gaussian_noise):
    images = inputs.images(images, in_box=False)
    example_ids = inputs.labels(example_ids, len(images), name='example_ids')
    check_draws(len(images), start, num, batch_size)
    logits_fn = smoothing.as_pytree(logits_fn)
    start, num = (np.broadcast_to(np.asarray(value, np.int32), len(images))
                  for value in (start, num))
    return mapped(batch_size, noise_fn)(
        key, logits_fn, np.asarray(images), np.asarray(example_ids, np.int32),
        start, num, sigma, shards)

  return count_on_devices
