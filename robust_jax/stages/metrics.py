"""metrics.jsonl: means over the steps since the last line, and the results of tests."""

import contextlib
import math
import time
from pathlib import Path

import jax

from robust_jax.devices import processes
from robust_jax.errors import NonFiniteLossError
from robust_jax.workdir import records

# More steps in a row than these may not be skipped (config.train.on_bad_loss).
_MOST_SKIPPED = 10


class Metrics:
  """Sums of the steps since the last line of metrics.jsonl, and its writer."""

  def __init__(self, workdir, start, progress, *, tensorboard=False):
    """Opens the file; lines beyond the step `start`, which will come again, are cut off.

    Args:
      workdir: the folder.
      start: steps done.
      progress: what `progress` returned at that step; None at the start.
      tensorboard: write events to workdir/tensorboard as well.
    """
    path = Path(workdir) / 'metrics.jsonl'
    records.resume(path, keep=lambda entry: entry['step'] <= start)
    self._path, self._sums, self._pending = path, dict(progress or {}), []
    self._skipped, self._step = self._sums.pop('skipped_in_a_row', 0), start
    self._begun = self._events = None
    self._steps = self._waited = 0
    if tensorboard:
      import tensorboardX
      self._events = tensorboardX.SummaryWriter(
          str(Path(workdir) / 'tensorboard'), purge_step=start + 1)

  def timed(self, batches):
    """The batches; the time that steps wait for them is noted."""
    batches = iter(batches)
    while True:
      begun = time.monotonic()
      try:
        batch = next(batches)
      except StopIteration:
        return
      # While a device computes the step before, nothing waits.
      if not self._pending or self._pending[-1]['count'].is_ready():
        self._waited += time.monotonic() - begun
      yield batch

  @contextlib.contextmanager
  def untimed(self):
    """What is done within does not count in the speed of training."""
    self.progress()  # Waits for the steps before.
    begun = time.monotonic()
    yield
    self._begun += time.monotonic() - begun

  def add(self, sums):
    """Adds the sums of a step, which may still be on their way."""
    self._pending.append(sums)
    self._steps += 1
    if self._begun is None:
      # The first step compiles, and those of before a resume took another process's time.
      self._untimed = self.progress()['count']
      self._begun, self._steps, self._waited = time.monotonic(), 0, 0.

  def progress(self):
    """The sums since the last line: plain JSON, from which a resumed run goes on exactly.

    Raises:
      NonFiniteLossError: too many steps in a row were skipped.
    """
    for sums in jax.device_get(self._pending):
      self._step += 1
      self._skipped = self._skipped + 1 if sums.get('skipped_steps') else 0
      if self._skipped > _MOST_SKIPPED:
        raise NonFiniteLossError(
            f'step {self._step}: {self._skipped} steps in a row were skipped, whose loss or '
            'gradient is not finite, or the loss above config.train.max_loss_jump')
      for name, value in sums.items():
        self._sums[name] = self._sums.get(name, 0.) + float(value)
    self._pending = []
    return self._sums | ({'skipped_in_a_row': self._skipped} if self._skipped else {})

  def flush(self, step, epoch, **more):
    """Writes the means since the last line, with speed and what `more` says; returns the record.

    Where all the steps since then were skipped, there are no means, and no loss among them.

    Raises:
      NonFiniteLossError: the loss is not finite, or too many steps in a row were skipped.
    """
    sums = self.progress()
    sums.pop('skipped_in_a_row', None)
    count, skipped = sums.pop('count'), sums.pop('skipped_steps', 0.)
    # Guarded, not exact: a line that holds only the compiling step has no speed.
    seconds = max(time.monotonic() - self._begun, 1e-9)
    measured = {'images_per_second': (count - self._untimed) / seconds,
                'steps_per_second': self._steps / seconds,
                'input_wait': min(self._waited / seconds, 1.)}
    processes.post('input_wait', measured['input_wait'])
    if waits := processes.posted('input_wait'):
      # The others wait for it too, in the sums over devices, which this does not count.
      slowest = max(waits, key=waits.get)
      measured |= {'slowest_process': slowest, 'slowest_input_wait': waits[slowest]}
    self._sums, self._untimed, self._steps, self._waited = {}, 0., 0, 0.
    if not sums.get('undefined_attacks'):
      sums.pop('undefined_attacks', None)  # Of a gradient that is not finite: said where it is so.
    record = {'split': 'train', 'step': step, 'epoch': epoch,
              **({name: value / count for name, value in sums.items()} if count else {}),
              **({'skipped_steps': int(skipped)} if skipped else {}), **more, **measured}
    if not math.isfinite(record.get('loss', 0.)):
      raise NonFiniteLossError(f'step {step}: the mean loss since the last log line must be '
                               f'finite, got {record["loss"]}')
    self.write(record)
    return record

  def write(self, record):
    """Appends a record and waits until the disk has it: a checkpoint may follow."""
    records.append(self._path, record)
    # Speed is that of training: what a test took, which comes after a flush, does not count.
    self._begun = time.monotonic()
    if self._events is not None:
      for name, value in record.items():
        if name not in ('split', 'step'):
          self._events.add_scalar(f'{record["split"]}/{name}', value, record['step'])
      self._events.flush()
