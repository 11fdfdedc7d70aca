"""What makes XLA fast on a CPU: settings of the process, made before jax computes anything.

`parallel.choose_devices` makes them for the launcher; a notebook may call `tune` first thing.
"""

import ctypes
import os
import platform

from robust_jax import onednn

# glibc's mallopt parameters, by their numbers in malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_INT_MAX = 2**31 - 1


def tune():
  """Keeps freed memory, and chooses XLA's faster convolutions; results change in last bits.

  Nothing is done where it does not apply: see `keep_memory` and `xla_flags`.
  """
  keep_memory()
  known = os.environ.get('XLA_FLAGS', '')
  flags = [flag for flag in xla_flags() if flag.split('=')[0] not in known]
  os.environ['XLA_FLAGS'] = ' '.join([known, *flags]).strip()


def keep_memory():
  """Has glibc keep the memory that is freed, and take all of it from one arena.

  XLA:CPU frees its temporary buffers after every call. By default their pages go back to the
  system and are faulted in again at the next call, which costs a fifth to a half of a train step
  of ResNet-20. The process stays at its largest size instead. Nothing is done without glibc.
  """
  if platform.libc_ver()[0] != 'glibc':
    return
  mallopt = ctypes.CDLL(None).mallopt
  for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _INT_MAX),
                           (_TOP_PAD, 2**26)):
    mallopt(parameter, value)


def xla_flags():
  """XLA's flags, which only a jaxlib that knows them may be given: others end the process.

  Left to itself XLA computes convolutions with YNNPACK one by one; Eigen, which this flag leaves
  them to, takes half the time for kernel gradients (those of images are oneDNN's, see
  `onednn`).
  """
  return ['--xla_cpu_experimental_ynn_fusion_type=eltwise'] if onednn.available() else []
