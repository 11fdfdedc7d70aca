"""jemalloc instead of glibc's malloc, which a process has to be started with.

oneDNN and XLA's elementwise kernels ask for tens of thousands of small blocks a train step, most of
them aligned ones, for which glibc has no cache: it searches its lists of free blocks, long after
compiling, while the other devices wait. benchmarks/README.md has figures.
"""

import os
import subprocess
import sys

LIBRARY = 'libjemalloc.so.2'
SETTINGS = 'dirty_decay_ms:-1,muzzy_decay_ms:-1'
"""Freed memory stays with the process, as `runtime.keep_memory` has it with glibc."""


def environment():
  """The variables that a process needs for jemalloc; none where it is to keep its malloc.

  That is where jemalloc is not installed (Debian and Ubuntu: libjemalloc2), off Linux, and where
  LD_PRELOAD is set, be it to nothing.
  """
  if sys.platform != 'linux' or 'LD_PRELOAD' in os.environ or not _can_be_preloaded():
    return {}
  return {'LD_PRELOAD': LIBRARY, 'MALLOC_CONF': os.environ.get('MALLOC_CONF', SETTINGS)}


def _can_be_preloaded():
  """Whether the loader finds it and it starts: of what fails, either complains on stderr."""
  try:
    tried = subprocess.run(['true'], env={**os.environ, 'LD_PRELOAD': LIBRARY},
                           capture_output=True, check=False)
  except OSError:
    return False
  return tried.returncode == 0 and not tried.stderr


def start_again(module):
  """Starts `python -m module` again in this process, with jemalloc, if that changes anything.

  Nothing happens in a process that was started otherwise, such as a notebook's.
  """
  if ('-m', module) in zip(sys.orig_argv, sys.orig_argv[1:]) and (added := environment()):
    os.execve(sys.executable, sys.orig_argv, {**os.environ, **added})
