"""Functions mapped over devices; the only module that says pmap.

Everything replicated (state, parameters, keys) goes in and comes out unstacked; everything that
has one row per example is split over the devices by rows. Results do not depend on how many
devices there are, because randomness is per example and sums are taken over all of them.

The devices of a run may be those of several processes, those of one after those of the other. All
processes then call the same functions with the same arguments, and all have the results.
"""

import jax
import numpy as np

from robust_jax.devices import processes

AXIS = 'devices'


def own(devices):
  """Those of this process."""
  return [device for device in devices if device.process_index == jax.process_index()]


def numbers(devices):
  """[own] int: the places of this process's devices among all."""
  return np.flatnonzero([device.process_index == jax.process_index() for device in devices])


def replicate(tree, devices):
  """Places a pytree on every device, as `map_train_step` returns it: so no step compiles twice."""
  mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
  return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def map_train_step(train_step, devices):
  """(state, batch, key) -> (state, sums) over devices.

  Args:
    train_step: `training.train_step` with its keyword arguments bound, axis_name=AXIS among them.
    devices: list of devices.

  Returns:
    The mapped step: state and key replicated, the batch split by rows, which must divide. Of
    several processes each gives its own rows of the batch.
  """
  mapped = map_devices(train_step, devices, in_axes=(None, 0, None), out_axes=(None, None))
  num_own = len(own(devices))

  def step(state, batch, key):
    return mapped(state, _split(batch, num_own), key)

  return step


def map_rows(fn, devices):
  """fn(replicated, rows) -> rows over devices.

  Args:
    fn: a function of a replicated pytree and a pytree of arrays [batch, ...], to the same kind.
    devices: list of devices.

  Returns:
    The mapped function, with NumPy results; the batch must divide by the devices.
  """
  several = len(own(devices)) < len(devices)

  def shared(replicated, rows):
    results = fn(replicated[0], rows)
    # A process can read what its own devices have.
    return jax.lax.all_gather(results, AXIS) if several else results

  # With a number, because pmap maps rows by no axis where the other argument has no arrays, such as
  # a function without parameters (jax 0.10.2 to 0.12).
  mapped = map_devices(shared, devices, in_axes=(None, 0), out_axes=None if several else 0)
  mine = numbers(devices)

  def run(replicated, rows):
    rows = jax.tree.map(lambda x: x[mine], _split(rows, len(devices))) if several else _split(
        rows, len(devices))
    results = jax.device_get(mapped((replicated, 0), rows))
    processes.alive()
    return jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), results)

  return run


def agreement(devices):
  """bool -> bool, the same in all processes: whether one of them has said so.

  Of several processes it answers the call before: this one's answer would have to be waited for.
  """
  num_own, asked = len(own(devices)), [0]
  if num_own == len(devices):
    return lambda flag: flag
  mapped = map_devices(lambda flag: jax.lax.pmax(flag, AXIS), devices, out_axes=None)

  def agree(flag):
    asked.append(mapped(np.full(num_own, flag, np.int32)))
    return int(asked.pop(0)) > 0

  return agree


def map_devices(fn, devices, **axes):
  """`jax.pmap` over the axis AXIS, with its in_axes and out_axes.

  On simulated devices a call returns when its result is there. They share the threads of the
  process: with hundreds of calls under way they came to wait for each other without end (LeNet's
  plain train step, two devices), and XLA ends a process that waits for 40 seconds. One call at a
  time costs 2 to 3% of LeNet's and ResNet-20's plain step.
  """
  mapped = jax.pmap(fn, axis_name=AXIS, devices=devices, **axes)
  if len(devices) == 1 or devices[0].platform != 'cpu':
    return mapped
  return lambda *args: jax.block_until_ready(mapped(*args))


def _split(rows, num_devices):
  def split(x):
    if len(x) % num_devices:
      raise ValueError(f'rows must be a multiple of {num_devices}, the devices, got {len(x)}')
    return x.reshape((num_devices, -1) + x.shape[1:])

  return jax.tree.map(split, rows)
