"""Standard output and standard error of a program, whatever they lead to.

A terminal that knows few characters, a pipe whose reader has gone, a full disk, or nothing.
"""

import codecs
import errno
import functools
import os
import signal
import sys
import unicodedata

from robust_jax.errors import UserError

# What has no likeness by Unicode's own rules.
_LIKE = {'–': '-', '−': '-', '±': '+-', '×': 'x', '≥': '>=', '≤': '<=', '∞': 'inf', 'ε': 'eps',
         'σ': 'sigma', 'Δ': 'delta', '✓': 'yes', '✗': 'no'}


@functools.cache
def say_once(line, stream='stdout'):
  """Prints a line that may come up again, as when each split of a file is read."""
  print(line, file=getattr(sys, stream), flush=True)


def prepare(*, output_is_all=False):
  """Makes prints safe; to be called before the program opens anything.

  - A character that the encoding lacks is written as one or more that look like it, or as '?'.
  - A stream that is closed leads to the null device: its number would else be that of the next
    file that is opened, into which libraries then wrote their messages.
  - What can't be written any more is dropped, with a warning on standard error unless the reader
    of a pipe has gone, as `head` does.

  Args:
    output_is_all: whether the program is there for its output, as one that prints a table is. Then
      it ends where that is lost: with status 141, as by SIGPIPE, where the reader has gone, else
      by UserError. Call `sys.stdout.flush()` before the end, as the last of it may be lost there.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      # It gets the lowest number that is free.
      os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
  codecs.register_error(__name__, _alike)
  for name in ('stdout', 'stderr'):
    stream = getattr(sys, name) or open(os.devnull, 'w')  # noqa: SIM115 - as long as the program
    stream.reconfigure(errors=__name__)
    setattr(sys, name, _Stream(stream, ends=output_is_all and name == 'stdout'))


def _alike(error):
  """The handler of codecs for characters that cannot be encoded."""
  text = error.object[error.start:error.end]
  plain = lambda c: unicodedata.normalize('NFKD', c).encode('ascii', 'ignore').decode()
  return ''.join(_LIKE.get(c) or plain(c) or '?' for c in text), error.end


class _Stream:
  """A text stream that may be lost."""

  def __init__(self, stream, ends):
    self._stream, self._ends = stream, ends

  def __getattr__(self, name):
    return getattr(self._stream, name)

  def write(self, text):
    try:
      return self._stream.write(text)
    except OSError as error:
      return self._lose(error)

  def flush(self):
    try:
      self._stream.flush()
    except OSError as error:
      self._lose(error)

  def _lose(self, error):
    # What is buffered, and what processes that this one starts write, goes there too.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, self._stream.fileno())
    os.close(null)
    message = f'{self._stream.name.strip("<>")} cannot be written ({error.strerror})'
    if self._ends and error.errno == errno.EPIPE:
      sys.exit(128 + signal.SIGPIPE)
    if self._ends:
      raise UserError(message) from None
    if error.errno != errno.EPIPE:
      print(f'warning: {message}; the work goes on', file=sys.stderr)
