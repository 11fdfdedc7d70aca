"""`run.main` as a program: what went wrong is one line and an exit status."""

import os
import sys
import time
import traceback

import jax
from absl import logging

from launch import run
from robust_jax import errors
from robust_jax.devices import processes
from robust_jax.workdir import interrupts


def start(argv):
  """Runs a command line; does not return."""
  # Orbax reports through absl what it does, and errors that it raises as well.
  logging.set_verbosity(logging.FATAL)
  interrupts.raise_interrupted()
  try:
    _leave(run.main(argv))
  except (errors.UserError, errors.TrainingError) as error:
    _leave(error.exit_status, 'error', error)
  except interrupts.Interrupted as error:
    _leave(error.exit_status, 'interrupted', f'{error}; the same command, without --redo, goes on')
  except Exception as error:
    if processes.count() == 1:
      raise
    if isinstance(error, jax.errors.JaxRuntimeError):
      time.sleep(processes.HEARTBEAT + 5)  # Where another process is lost this one ends meanwhile.
    traceback.print_exc(file=processes.stderr())
    _leave(1, 'error', f'{type(error).__name__} in {processes.name()}')


def _leave(status, kind=None, text=None):
  """Ends the program, with a line where there is one to say."""
  if kind:
    print(f'{kind}: {text}', file=processes.stderr(), flush=True)
  if processes.count() > 1:
    processes.end(status, str(text))
  sys.stdout.flush()
  if kind == 'interrupted':
    # At once: threads that still read or compute can crash the interpreter while it takes leave.
    os._exit(status)
  sys.exit(status)
