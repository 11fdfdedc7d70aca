"""The one place where `robust_jax/cpu`, the faster versions of layers for CPUs, comes in.

Without it everything is computed by plain JAX and Flax: the same parameters and, up to rounding,
the same results, slower on CPU. The folder may be deleted.
"""

import importlib
import importlib.util
import os
import sys

import jax

_UNROLLED_STEPS = 20
# {setting of jax: (its value in a run, what is said where the environment has another)}.
_SETTINGS = {
    'jax_enable_x64': (False, 'runs are computed in float32'),
    'jax_disable_jit': (False, 'runs are compiled'),
    'jax_numpy_dtype_promotion': ('standard', ''),
    'jax_numpy_rank_promotion': ('allow', ''),
    'jax_threefry_partitionable': (True, ''),
}
SWITCH = 'ROBUST_JAX_CPU'
"""Environment variable; `plain` leaves `robust_jax/cpu` out."""


def cpu():
  """The package `robust_jax.cpu`, or None where it is switched off or deleted."""
  if os.environ.get(SWITCH) == 'plain' or importlib.util.find_spec('robust_jax.cpu') is None:
    return None
  return importlib.import_module('robust_jax.cpu')


def layers():
  """The layers for CPUs, `robust_jax.cpu`; None where there is none, or another default device."""
  return cpu() if jax.default_backend() == 'cpu' else None


def unrolls(num_steps):
  """Whether a loop over this many gradient steps is faster when it is unrolled.

  XLA:CPU brings its own convolutions into the form of its fast kernels in the outermost computation
  only: inside a loop, a convolution's input gradient takes about five times as long. Unrolling
  costs compilation.
  """
  if jax.default_backend() != 'cpu' or num_steps > _UNROLLED_STEPS:
    return False
  package = cpu()
  return package is None or not package.has_convolutions()


def tune():
  """Makes the settings of this process, before jax computes.

  Those of `robust_jax.cpu.tune`, and those of jax by which results, or whether there are any, would
  depend on the environment: a run is compiled and float32, and its draws are jax's present ones.
  """
  for name, (value, remark) in _SETTINGS.items():
    if remark and getattr(jax.config, name) != value:
      print(f'warning: {name.upper()} is set, but {remark}', file=sys.stderr)
    jax.config.update(name, value)
  if package := cpu():
    package.tune()
