"""jemalloc instead of glibc's malloc, which a process has to be started with.

oneDNN asks for thousands of aligned blocks a train step. glibc (2.36) keeps no cache of them, and
searches its lists of free blocks, which compiling has made long, while the other devices' threads
wait. benchmarks/README.md has figures.
"""

import contextlib
import os
import subprocess
import sys

LIBRARY = 'libjemalloc.so.2'
SETTINGS = 'dirty_decay_ms:-1,muzzy_decay_ms:-1'
"""Freed memory stays with the process, as `runtime.keep_memory` has it with glibc."""

_PROCESS = 'ROBUST_JAX_STARTED_AGAIN'  # The process that has been, so that it is once.
_TRIAL = 'import os; os.environ["LD_PRELOAD"]'


def environment(given=os.environ):
  """The variables that a process needs for jemalloc; none where it is to keep its malloc.

  That is where jemalloc is not installed (Debian and Ubuntu: libjemalloc2), off Linux, and where
  the given environment has an LD_PRELOAD, be it of nothing.
  """
  settings = given.get('MALLOC_CONF', '')
  if sys.platform != 'linux' or 'LD_PRELOAD' in given:
    return {}
  # Of a setting that is there twice the last counts: the user's.
  added = {'LD_PRELOAD': LIBRARY, 'MALLOC_CONF': ','.join(filter(None, (SETTINGS, settings)))}
  return added if _works({**given, **added}) else {}


def _works(variables):
  """Whether an interpreter starts with them and keeps them, and nothing complains."""
  try:
    tried = subprocess.run([sys.executable, '-ISc', _TRIAL], env=variables, check=False,
                           stdin=subprocess.DEVNULL, capture_output=True)
  except OSError:
    return False
  return tried.returncode == 0 and not tried.stderr


def start_again(module):
  """Starts `python -m module` again in this process, with jemalloc, if that changes anything.

  Nothing happens in a process that was started otherwise: a notebook's, a debugger's.
  """
  process = str(os.getpid())
  if not _is_program(module, sys.orig_argv[1:]) or os.environ.get(_PROCESS) == process:
    return
  if added := environment():
    sys.stdout.flush()
    with contextlib.suppress(OSError):  # It is slower without, but it runs.
      os.execve(sys.executable, sys.orig_argv, {**os.environ, **added, _PROCESS: process})


def _is_program(module, words):
  """Whether an interpreter's words have the module as its program, not as one of its arguments."""
  while words and words[0].startswith('-') and words[0] != '-m':
    words = words[2 if words[0] in ('-X', '-W') else 1:]
  return words[:2] == ['-m', module]
