"""Devices: the only module that maps over them, and the only one that says pmap.

Everything replicated (state, parameters, keys) goes in and comes out unstacked; everything that
has one row per example is split over the devices by rows. Results do not depend on how many
devices there are, because randomness is per example and sums are taken over all of them.
"""

import functools
import math
import os

import jax
import numpy as np

from robust_jax import certification
from robust_jax.certification import sampling
from robust_jax.cpu import runtime
from robust_jax.errors import UserError

AXIS = 'devices'


def host_device_count(batch_sizes, cores):
  """How many CPU devices to simulate: the largest common divisor of the batches up to the cores.

  Several single-threaded devices train small networks faster than one device with threads.
  """
  common = math.gcd(*batch_sizes)
  return max(count for count in range(1, max(cores, 1) + 1) if common % count == 0)


def choose_devices(num_devices, batch_sizes):
  """The devices of a run; on CPU they are simulated, so this comes before any computation.

  It also makes the settings of `runtime.tune`.

  Args:
    num_devices: how many; 0: all accelerators or, on CPU, `host_device_count`.
    batch_sizes: rows of the batches that are split over the devices.

  Raises:
    UserError: there are fewer.
  """
  runtime.tune()
  if 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    count = num_devices or host_device_count(batch_sizes, cores)
    os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '') +
                               f' --xla_force_host_platform_device_count={count}').strip()
  devices = jax.local_devices()
  if num_devices > len(devices):
    raise UserError(f'--devices is {num_devices}; at most {len(devices)} are here')
  return devices[:num_devices or None]


def check_divisible(field, batch_size, devices, parts=1):
  """Raises UserError where `batch_size`, the value of config field `field`, does not split.

  Args:
    field: its name.
    batch_size: rows.
    devices: list of devices.
    parts: what each device's rows are split into.
  """
  if batch_size % (len(devices) * parts):
    of = f'{len(devices)} device' + 's' * (len(devices) > 1)
    of += f' times {parts} parts (config.train.accumulation)' if parts > 1 else ''
    raise UserError(f'{field} is {batch_size}; a multiple of {len(devices) * parts} is allowed '
                    f'({of})')


def replicate(tree, devices):
  """Places a pytree on every device, as `map_train_step` returns it: so no step compiles twice."""
  mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
  return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def map_train_step(train_step, devices):
  """(state, batch, key) -> (state, sums) over devices, from a step made with axis_name=AXIS.

  Args:
    train_step: see `training.make_train_step`.
    devices: list of devices.

  Returns:
    The mapped step: state and key replicated, the batch split by rows, which must divide.
  """
  mapped = _pmap(train_step, devices, in_axes=(None, 0, None), out_axes=(None, None))

  def step(state, batch, key):
    return mapped(state, _split(batch, len(devices)), key)

  return step


def map_rows(fn, devices):
  """fn(replicated, rows) -> rows over devices.

  Args:
    fn: a function of a replicated pytree and a pytree of arrays [batch, ...], to the same kind.
    devices: list of devices.

  Returns:
    The mapped function, with NumPy results; the batch must divide by the devices.
  """
  mapped = _pmap(fn, devices, in_axes=(None, 0))

  def run(replicated, rows):
    results = jax.device_get(mapped(replicated, _split(rows, len(devices))))
    return jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), results)

  return run


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
      votes = certification.count(
          key, logits_fn, images, example_ids, start, num, sigma=sigma, batch_size=batch_size,
          shard=shard, num_shards=len(devices), noise_fn=noise_fn)
      return jax.lax.psum(votes, AXIS)

    return _pmap(count_shard, devices, in_axes=(None,) * 7 + (0,), out_axes=None)

  def count(key, logits_fn, images, example_ids, start, num, *, sigma, batch_size,
            noise_fn=sampling.gaussian_noise):
    sampling.check_draws(len(images), start, num, batch_size)
    if not isinstance(logits_fn, jax.tree_util.Partial):
      logits_fn = jax.tree_util.Partial(logits_fn)
    start, num = (np.broadcast_to(np.asarray(value, np.int32), len(images))
                  for value in (start, num))
    return mapped(batch_size, noise_fn)(key, logits_fn, np.asarray(images, np.float32),
                              np.asarray(example_ids, np.int32), start, num, sigma, shards)

  return count


def _pmap(fn, devices, **axes):
  """`jax.pmap` over the axis AXIS; on simulated devices a call returns when its result is there.

  Simulated devices share the threads of the process. With hundreds of calls under way they came to
  wait for each other without end (LeNet's plain train step, two devices), and XLA ends a process
  that waits for 40 seconds. One call at a time costs 2 to 3% of LeNet's and ResNet-20's plain step.
  """
  mapped = jax.pmap(fn, axis_name=AXIS, devices=devices, **axes)
  if len(devices) == 1 or devices[0].platform != 'cpu':
    return mapped
  return lambda *args: jax.block_until_ready(mapped(*args))


def _split(rows, num_devices):
  def split(x):
    if len(x) % num_devices:
      raise ValueError(f'{len(x)} rows; a multiple of the {num_devices} devices is allowed')
    return x.reshape((num_devices, -1) + x.shape[1:])

  return jax.tree.map(split, rows)
