"""The devices of a run, and whether batches divide by them."""

import math
import os

import jax

from robust_jax.devices import processes
from robust_jax.errors import UserError

_COUNT = '--xla_force_host_platform_device_count'


def host_device_count(batch_sizes, cores):
  """How many CPU devices to simulate: the largest common divisor of the batches up to the cores.

  Several single-threaded devices train small networks faster than one device with threads.
  """
  common = math.gcd(*batch_sizes)
  return max(count for count in range(1, max(cores, 1) + 1) if common % count == 0)


def choose_devices(num_devices, batch_sizes):
  """The devices of a run; on CPU they are simulated, so this comes before any computation.

  XLA reads how many to simulate from os.environ['XLA_FLAGS'], where this adds it.

  Args:
    num_devices: how many of each process; 0: all accelerators or, on CPU, `host_device_count`.
    batch_sizes: rows of the batches that are split over the devices.

  Returns:
    The devices of all processes, those of one after those of the other.

  Raises:
    UserError: there are fewer, or none of the kind that $JAX_PLATFORMS asks for, or processes have
      other numbers of them.
  """
  flags = os.environ.get('XLA_FLAGS', '')
  if _COUNT not in flags:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    count = num_devices or host_device_count(
        [max(size // processes.count(), 1) for size in batch_sizes], cores)
    os.environ['XLA_FLAGS'] = f'{flags} {_COUNT}={count}'.strip()
  try:
    devices = jax.local_devices()
  # jax asserts where $JAX_PLATFORMS names what it knows and does not find.
  except (RuntimeError, AssertionError) as error:
    wanted = jax.config.jax_platforms
    reason = next(iter(str(error).splitlines()), 'it finds no such device')
    raise UserError(f'JAX_PLATFORMS is {wanted!r}, which jax cannot use ({reason}); unset it, or '
                    'install jax for those devices') from error
  if num_devices > len(devices):
    raise UserError(f'--devices must be at most {len(devices)}, the devices of this machine, got '
                    f'{num_devices}')
  processes.check_same('devices', num_devices or len(devices), lambda number, first, other: (
      f'--devices must be given where processes have other numbers of devices: {first} in process '
      f'0, {other} in process {number}'))
  everyone = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
  return [device for number in range(jax.process_count())
          for device in [each for each in everyone if each.process_index == number][
              :num_devices or None]]


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
    raise UserError(f'{field} must be a multiple of {len(devices) * parts} ({of}), got '
                    f'{batch_size}')
