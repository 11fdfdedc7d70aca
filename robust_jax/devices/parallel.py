"""Functions mapped over devices; the only module that says pmap.

Everything replicated (state, parameters, keys) goes in and comes out unstacked; everything that
has one row per example is split over the devices by rows. Results do not depend on how many
devices there are, because randomness is per example and sums are taken over all of them.
"""

import jax
import numpy as np

AXIS = 'devices'


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
    The mapped step: state and key replicated, the batch split by rows, which must divide.
  """
  mapped = map_devices(train_step, devices, in_axes=(None, 0, None), out_axes=(None, None))

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
  # With a number, because pmap maps rows by no axis where the other argument has no arrays, such as
  # a function without parameters (jax 0.10.2 to 0.12).
  mapped = map_devices(lambda replicated, rows: fn(replicated[0], rows), devices, in_axes=(None, 0))

  def run(replicated, rows):
    results = jax.device_get(mapped((replicated, 0), _split(rows, len(devices))))
    return jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), results)

  return run


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
