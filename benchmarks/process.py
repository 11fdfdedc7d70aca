"""The parent's side of a worker: a process that is asked, and answers or is reported dead."""

import ctypes.util
import functools
import json
import os
import subprocess
import tempfile

_LINES = 15
# glibc's settings of `robust_jax.cpu.process.keep_memory`, from outside of a process.
_KEEP_MEMORY = {'MALLOC_ARENA_MAX': '1', 'MALLOC_MMAP_MAX_': '0',
                'MALLOC_TRIM_THRESHOLD_': str(2**31 - 1), 'MALLOC_TOP_PAD_': str(2**26)}
_KEEP_JEMALLOC = 'dirty_decay_ms:-1,muzzy_decay_ms:-1'

MALLOC = ('LD_PRELOAD', 'MALLOC_CONF')
"""Variables that are each contestant's own."""


class WorkerError(RuntimeError):
  """A worker died; the message is the last lines that it wrote."""


class Worker:
  """A process `python -m benchmarks.worker`, which waits for requests."""

  def __init__(self, python, device, malloc=''):
    self.log = tempfile.TemporaryFile('w+')  # noqa: SIM115, closed by `close`
    self.process = subprocess.Popen(
        [python, '-m', 'benchmarks.worker'], env=environment(device, malloc),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)

  def ask(self, request, **arguments):
    """The answer to a request, a function of `worker`.

    Raises:
      WorkerError: the process ended instead.
    """
    try:
      print(json.dumps({'do': request, 'with': arguments}), file=self.process.stdin, flush=True)
      answer = self.process.stdout.readline()
    except BrokenPipeError:
      answer = ''
    if not answer:
      status = self.process.wait()
      self.log.seek(0)
      last = self.log.read().splitlines()[-_LINES:]
      raise WorkerError('\n'.join([f'its process ended with status {status}:', *last]))
    return json.loads(answer)

  def close(self):
    """Ends the process, whatever it is doing."""
    self.process.kill()
    self.process.communicate()
    self.log.close()


def environment(device, malloc):
  """The environment of a worker: this process's, with one kind of device and nothing preallocated,
  and with a `Contestant`'s malloc, whatever this process was started with.

  Programs are compiled anew, not read from a cache, so that the first call is comparable. Threads
  keep their own defaults of how to wait: PyTorch's spin for some milliseconds after their work,
  which makes them faster, and then sleep.
  """
  found = {**os.environ, 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
  for name in MALLOC:
    found.pop(name, None)
  if device == 'gpu':
    found |= {'JAX_PLATFORMS': 'cuda', 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  else:
    found |= {'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}
  if malloc == 'jemalloc':
    return found | jemalloc()
  return found | (_KEEP_MEMORY if malloc == 'glibc' else {})


@functools.cache
def jemalloc():
  """What a worker needs for jemalloc, as in the Makefile; nothing where it is not installed."""
  library = ctypes.util.find_library('jemalloc')
  return {'LD_PRELOAD': library, 'MALLOC_CONF': _KEEP_JEMALLOC} if library else {}


def take_turns(names, number):
  """The order of a round: to and fro, so that nobody is always first."""
  return list(names) if number % 2 == 0 else list(names)[::-1]
