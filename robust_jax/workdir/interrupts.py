"""SIGTERM and SIGINT: what a scheduler or a person sends when a run has to stop.

A stage that has something to save asks for the signal to wait until it is safe; everywhere else it
ends the process with `Interrupted` at once. A second signal always ends the process as the system
would have.
"""

import contextlib
import os
import signal
import types

from robust_jax.errors import TRY_AGAIN

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
  """A signal ended the run; the same command goes on.

  No Exception, as KeyboardInterrupt is none: whoever expects errors must not take it for one.
  """

  exit_status = TRY_AGAIN


def raise_interrupted():
  """From now on, in the main thread, the first signal raises `Interrupted`."""

  def handle(number, frame):
    del frame
    _second_signal_ends_the_process()
    raise Interrupted(signal.Signals(number).name)

  _set(handle)


@contextlib.contextmanager
def postponed():
  """A context in which the first signal is only noted.

  Yields:
    An object whose `signal` is the `signal.Signals` that has come, or None; always None outside of
    the main thread, where signals do not arrive.
  """
  request = types.SimpleNamespace(signal=None)

  def handle(number, frame):
    del frame
    request.signal = signal.Signals(number)
    _second_signal_ends_the_process()
    # Not print, which must not be entered again where it was interrupted.
    with contextlib.suppress(OSError):  # Nobody may read it any more.
      os.write(2, f'{request.signal.name}: saving, then the run ends; once more ends it at once\n'
               .encode())

  before = _set(handle)
  try:
    yield request
  finally:
    for number, handler in before.items():
      # After a signal the next one is the second, whoever handled them before.
      if request.signal is None or handler is signal.default_int_handler:
        signal.signal(number, handler)


def _second_signal_ends_the_process():
  for number in SIGNALS:
    signal.signal(number, signal.SIG_DFL)


def _set(handler):
  """Sets the handler of all SIGNALS; {signal: what was there before}."""
  try:
    return {number: signal.signal(number, handler) for number in SIGNALS}
  except ValueError:  # Not the main thread.
    return {}
