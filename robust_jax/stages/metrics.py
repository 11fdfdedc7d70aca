"""metrics.jsonl: means over the steps since the last line, and the results of tests."""

import math
import time
from pathlib import Path

import jax

from robust_jax.errors import NonFiniteLossError
from robust_jax.workdir import records


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
    self._begun = self._events = None
    if tensorboard:
      import tensorboardX
      self._events = tensorboardX.SummaryWriter(
          str(Path(workdir) / 'tensorboard'), purge_step=start + 1)

  def add(self, sums):
    """Adds the sums of a step, which may still be on their way."""
    self._pending.append(sums)
    if self._begun is None:
      # The first step compiles, and those of before a resume took another process's time.
      self._untimed = self.progress()['count']
      self._begun = time.monotonic()

  def progress(self):
    """The sums since the last line: plain JSON, from which a resumed run goes on exactly."""
    for step in jax.device_get(self._pending):
      for name, value in step.items():
        self._sums[name] = self._sums.get(name, 0.) + float(value)
    self._pending = []
    return dict(self._sums)

  def flush(self, step, epoch, **more):
    """Writes the means since the last line, with speed and what `more` says; returns the record.

    Raises:
      NonFiniteLossError: the loss is not finite.
    """
    sums = self.progress()
    count = sums.pop('count')
    now = time.monotonic()
    # Guarded, not exact: a line that holds only the compiling step has no speed.
    speed = (count - self._untimed) / max(now - self._begun, 1e-9)
    self._sums, self._untimed = {}, 0.
    if not sums.get('undefined_attacks'):
      sums.pop('undefined_attacks', None)  # Of a gradient that is not finite: said where it is so.
    record = {'split': 'train', 'step': step, 'epoch': epoch,
              **{name: value / count for name, value in sums.items()}, **more,
              'images_per_second': speed}
    if not math.isfinite(record['loss']):
      raise NonFiniteLossError(f'step {step}: the mean loss since the last log line must be '
                               f'finite, got {record["loss"]}. The last good checkpoint is kept: '
                               'try a smaller learning rate')
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
