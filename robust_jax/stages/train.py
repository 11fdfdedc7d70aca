"""The train stage: from the newest checkpoint, if there is one, to the last step."""

import json
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from robust_jax import checkpoint, data, evaluation, models, parallel, training
from robust_jax import workdir as workdirs
from robust_jax.errors import NonFiniteLossError
from robust_jax.types import Batch


def train(run, workdir):
  """Trains the run's network; writes checkpoints and metrics.jsonl.

  Batches and draws depend on the seed and the step only, so a run that goes on from a checkpoint
  sees what an undisturbed one would have seen.

  Raises:
    NonFiniteLossError: the loss or a parameter is not finite; the last good checkpoint is kept.
  """
  settings, dataset = run.train, run.train_data
  num_steps, steps_per_epoch = run.num_steps, run.steps_per_epoch
  optimizer, learning_rate = run.optimizer(), run.learning_rate()
  eval_every = max(round(settings.eval_every_epochs * steps_per_epoch), 1)
  step_fn = parallel.map_train_step(
      training.make_train_step(run.network, optimizer, run.method,
                               steps_per_epoch=steps_per_epoch, axis_name=parallel.AXIS),
      run.devices)
  key = run.key('train')
  state = training.create_state(
      models.init(run.key('init'), run.model, dataset.image_shape), optimizer)

  with checkpoint.manager(workdir, keep=settings.keep_checkpoints) as checkpoints:
    state = parallel.replicate(checkpoint.restore(checkpoints, state) or state, run.devices)
    start = int(state.step)
    metrics = _Metrics(Path(workdir) / 'metrics.jsonl', start)
    batches = data.train_batches(
        dataset, batch_size=settings.batch_size, seed=run.config['seed'],
        augment=run.data.augment, start_step=start, num_steps=num_steps)
    bar = tqdm(batches, desc='train', initial=start, total=num_steps, unit='step', disable=None)
    for step, batch in enumerate(bar, start + 1):
      state, sums = step_fn(state, Batch(*batch), key)
      metrics.add(sums)
      due = {every: step % every == 0 or step == num_steps
             for every in (settings.log_every, eval_every, settings.checkpoint_every)}
      if any(due.values()):
        record = metrics.flush(step, step / steps_per_epoch, float(learning_rate(step - 1)))
        bar.set_postfix(loss=f'{record["loss"]:.3f}')
      if due[eval_every]:
        tested = _test(run, state)
        metrics.write({'split': 'test', 'step': step, 'epoch': step / steps_per_epoch,
                       'loss': tested['loss'], 'accuracy': tested['accuracy']})
        bar.write(f'epoch {step / steps_per_epoch:.3g}  step {step}/{num_steps}  '
                  f'train loss {record["loss"]:.4f}  test accuracy {tested["accuracy"]:.1%}  '
                  f'{record["images_per_second"]:,.0f} images/s')
      if due[settings.checkpoint_every]:
        _save(run, checkpoints, state)


def _save(run, checkpoints, state):
  finite = _all_finite(state.params)
  if not finite:
    raise NonFiniteLossError(f'step {int(state.step)}: a parameter is not finite; '
                             f'the newest good checkpoint is step {checkpoints.latest_step()}')
  dataset = run.test_data
  checkpoint.save(checkpoints, state, {
      'model': run.config['model'], 'dataset': run.data.name,
      'num_classes': dataset.num_classes, 'class_names': list(dataset.class_names),
      'image_shape': list(dataset.image_shape), 'mean': _listed(dataset.mean),
      'std': _listed(dataset.std), 'sigma': run.sigma, 'epsilon': run.config['epsilon']})


def _listed(constant):
  return np.asarray(constant).tolist()


@jax.jit
def _all_finite(params):
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))


def _test(run, state):
  """Loss and accuracy of the base classifier on the test split, under noise of config.sigma."""
  batches = data.eval_batches(run.test_data, batch_size=run.train.eval_batch_size)
  return evaluation.loss_and_accuracy(
      run.key('evaluate'), run.network.eval_logits(state.variables), batches,
      sigma=run.config['sigma'], devices=run.devices)


class _Metrics:
  """Sums of the steps since the last line of metrics.jsonl."""

  def __init__(self, path, start):
    lines = []
    if path.exists():
      lines = [line for line in path.read_text(encoding='utf-8').splitlines(keepends=True)
               if line.endswith('\n') and json.loads(line)['step'] <= start]
    # Lines beyond the checkpoint will be written again.
    workdirs.write_bytes(path, ''.join(lines).encode())
    self._path = path
    self._pending = []
    self._begun = None

  def add(self, sums):
    if self._begun is None:
      # The first step compiles: its time says nothing about speed.
      jax.block_until_ready(sums)
      self._begun = time.monotonic()
      self._skipped = float(sums['count'])
    self._pending.append(sums)

  def flush(self, step, epoch, learning_rate):
    """Writes the means since the last flush.

    Raises:
      NonFiniteLossError: the loss is not finite.
    """
    pending = jax.device_get(self._pending)
    sums = {name: float(sum(entry[name] for entry in pending)) for name in pending[0]}
    count = sums.pop('count')
    now = time.monotonic()
    # Guarded, not exact: a line that holds only the compiling step has no speed.
    speed = max(count - self._skipped, 0) / max(now - self._begun, 1e-9)
    self._pending, self._begun, self._skipped = [], now, 0.
    record = {'split': 'train', 'step': step, 'epoch': epoch,
              **{name: value / count for name, value in sums.items()},
              'learning_rate': learning_rate, 'images_per_second': speed}
    if not math.isfinite(record['loss']):
      raise NonFiniteLossError(f'step {step}: the mean loss since the last log line is '
                               f'{record["loss"]}; finite losses are allowed. The last good '
                               'checkpoint is kept: try a smaller learning rate')
    self.write(record)
    return record

  def write(self, record):
    with open(self._path, 'a', encoding='utf-8') as file:
      file.write(json.dumps(record) + '\n')
