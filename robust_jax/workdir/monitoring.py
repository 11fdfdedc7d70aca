"""What a long stage shows: its progress and speed, a trace of its steps, the memory it takes."""

import contextlib
import resource
import sys
import threading
import time
import weakref

import jax
from tqdm import tqdm

# What metrics.jsonl has of the machine: it differs from run to run.
MEASURED = ('images_per_second', 'steps_per_second', 'input_wait', 'slowest_process',
            'slowest_input_wait', 'memory_mib', 'device_memory_mib')


class _Lines:
  """A file on which a bar that rewrites its line becomes lines."""

  written = 0.  # When, by any of them.
  bar = staticmethod(lambda: None)  # The newest bar, as long as it is there.

  def __init__(self, file):
    self._file = file

  def write(self, text):
    text = text.replace('\r', '').strip()
    if text:
      _Lines.written = time.monotonic()
      self._file.write(f'{text}\n')

  def flush(self):
    self._file.flush()


class _Bar(tqdm):
  """A bar that does not repeat its last line as it closes."""

  def close(self):
    self.leave = self.n != self.last_print_n
    super().close()


def bar(iterable=None, **kwargs):
  """A tqdm progress bar on stderr; a line a minute where that is no terminal."""
  if sys.stderr.isatty():
    return tqdm(iterable, **kwargs)
  shown = _Bar(
      iterable, file=_Lines(sys.stderr), mininterval=60, miniters=1, **kwargs,
      bar_format='{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]')
  _Lines.bar = weakref.ref(shown)
  return shown


@contextlib.contextmanager
def heartbeat(stage, *, seconds=300):
  """A context in which a log file has a line at least every so many seconds, as a sign of life.

  Where stderr is no terminal: the newest bar's line again, or how long the stage takes already.

  Args:
    stage: its name.
    seconds: of silence.
  """
  done, begun = threading.Event(), time.monotonic()
  _Lines.written = begun

  def beat():
    while not done.wait(max(_Lines.written + seconds - time.monotonic(), 0.01)):
      if time.monotonic() < _Lines.written + seconds:
        continue
      shown = _Lines.bar()
      if shown is not None and not shown.disable:
        shown.refresh()
      else:
        minutes = (time.monotonic() - begun) / 60
        print(f'{stage}: {minutes:,.0f} min so far', file=_Lines(sys.stderr), flush=True)

  # XLA compiles and computes without the interpreter's lock.
  thread = threading.Thread(target=beat, daemon=True)
  if not sys.stderr.isatty():
    thread.start()
  try:
    yield
  finally:
    done.set()
    if thread.is_alive():
      thread.join()


def traced(items, folder, *, count, skip=10):
  """Yields the items; what is done with `count` of them, after `skip`, is traced into `folder`.

  The trace opens in Perfetto (the .json.gz file in ui.perfetto.dev) or TensorBoard.

  Args:
    items: iterable.
    folder: where jax.profiler writes.
    count: items to trace; 0 for none.
    skip: items before them, which compile and warm up.
  """
  tracing = False
  try:
    for number, item in enumerate(items):
      if count and number == skip:
        jax.profiler.start_trace(folder)
        tracing = True
      yield item
      if tracing and number == skip + count - 1:
        # Devices work in order: what was asked of them before is done when this is.
        jax.block_until_ready([jax.device_put(0., device) + 1 for device in jax.local_devices()])
        jax.profiler.stop_trace()
        tracing = False
  finally:
    if tracing:
      jax.profiler.stop_trace()


def peak_memory(device):
  """Peak memory so far: {'device_memory_mib': of an accelerator} or {'memory_mib': of the process}.

  Args:
    device: a jax device.
  """
  stats = device.memory_stats()
  if stats and 'peak_bytes_in_use' in stats:
    return {'device_memory_mib': stats['peak_bytes_in_use'] / 2**20}
  unit = 1 if sys.platform == 'darwin' else 2**10
  return {'memory_mib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20}
