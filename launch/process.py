"""What every program of this package does as a process: `run(main)`."""

import os
import sys

from absl import logging

from robust_jax import errors
from robust_jax.workdir import interrupts


def run(main):
  """Runs a main(argv) -> status as this process: mistakes and signals end it with one line."""
  # Orbax reports through absl what it does, and errors that it raises as well.
  logging.set_verbosity(logging.FATAL)
  interrupts.raise_interrupted()
  try:
    sys.exit(main(sys.argv))
  except (errors.UserError, errors.NonFiniteLossError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(error.exit_status)
  except interrupts.Interrupted as error:
    print(f'interrupted: {error}; the same command, without --redo, goes on', file=sys.stderr,
          flush=True)
    sys.stdout.flush()
    # At once: threads that still read or compute can crash the interpreter while it takes leave.
    os._exit(error.exit_status)
