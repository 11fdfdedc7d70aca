"""The train stage: from the newest checkpoint, if there is one, to the last step."""

import functools
from pathlib import Path

import jax
import numpy as np

from robust_jax import data, training
from robust_jax.devices import parallel
from robust_jax.errors import NonFiniteLossError
from robust_jax.stages import radii, weights
from robust_jax.stages.metrics import Metrics
from robust_jax.training import evaluate
from robust_jax.types import Batch, TangentBatch
from robust_jax.workdir import checkpoint, interrupts, monitoring


def train(run, workdir):
  """Trains the run's network; writes checkpoints, metrics.jsonl and, where there are, radii.npz.

  Batches and draws depend on the seed and the step only, so a run that goes on from a checkpoint
  sees what an undisturbed one would have seen.

  Returns:
    {'last_step'}: the step of the last checkpoint.

  Raises:
    NonFiniteLossError: the loss or a parameter is not finite; the last good checkpoint is kept.
    Interrupted: SIGTERM or SIGINT came; a checkpoint of the last step was saved.
    UserError: a checkpoint cannot be written.
  """
  if not run.trainable:
    print(f'train: skipped, {run.config["model"]["name"]!r} has no parameters')
    return {}
  settings, dataset = run.train, run.train_data
  num_steps, steps_per_epoch = run.num_steps, run.steps_per_epoch
  optimizer, learning_rate = run.optimizer(), run.learning_rate()
  step_fn = parallel.map_train_step(
      training.make_train_step(run.network, optimizer, run.method,
                               steps_per_epoch=steps_per_epoch, axis_name=parallel.AXIS,
                               accumulation=settings.accumulation, ema_decay=settings.ema_decay),
      run.devices)
  key = run.key('train')
  create_state = functools.partial(training.create_state, optimizer=optimizer,
                                   ema=settings.ema_decay > 0)
  eval_every = max(round(settings.eval_every_epochs * steps_per_epoch), 1)

  def initial():
    return create_state(weights.initial_variables(run), memory=weights.initial_memory(run))

  if run.config['sigma'] > 0 and 'sigma' not in run.components['method']:
    print(f'train: {run.config["method"]["name"]!r} trains without noise; config.sigma '
          f'{run.config["sigma"]:.4g} is that of the tests, attacks and certificates', flush=True)
  if run.config['epsilon'] > 0 and 'epsilon' not in run.components['method']:
    print(f'train: {run.config["method"]["name"]!r} trains within no radius; config.epsilon '
          f'{run.config["epsilon"]:.4g} is not used', flush=True)
  # What can be refused comes before the folder of checkpoints, by which a workdir counts as begun.
  data.take(dataset, [0, dataset.num_examples - 1])  # The last is an extra one, if there are any.
  tangents = run.train_tangents()
  state = initial() if checkpoint.latest_step(workdir) is None else None
  progress = None
  with (interrupts.postponed() as interruption,
        checkpoint.manager(workdir, keep=settings.keep_checkpoints,
                           keep_best=settings.keep_best) as checkpoints):
    if state is None:
      state, progress = _restored(run, checkpoints, create_state) or (initial(), None)
    state = parallel.replicate(state, run.devices)
    start = int(state.step)
    if start:
      print(f'train: goes on from step {start}', flush=True)
    metrics = Metrics(workdir, start, progress, tensorboard=settings.tensorboard)
    kind = Batch if tangents is None else TangentBatch
    batches = data.train_batches(
        dataset, batch_size=settings.batch_size, seed=run.config['seed'],
        augment=run.data.augment, tangents=tangents, start_step=start,
        num_steps=num_steps)
    batches = monitoring.traced(batches, Path(workdir) / 'profile', count=settings.profile_steps)
    bar = monitoring.bar(batches, desc='train', initial=start, total=num_steps, unit='step')
    for step, batch in enumerate(bar, start + 1):
      state, sums = step_fn(state, kind(*batch), key)
      metrics.add(sums)
      last = step == num_steps
      tests = step % eval_every == 0 or last
      accuracy = None
      if step % settings.log_every == 0 or tests:
        record = metrics.flush(step, step / steps_per_epoch,
                               learning_rate=float(learning_rate(step - 1)),
                               **monitoring.peak_memory(run.devices[0]))
        bar.set_postfix(loss=f'{record["loss"]:.3f}', refresh=False)
      if tests:
        tested = _test(run, state)
        accuracy = tested['accuracy']
        metrics.write({'split': 'test', 'step': step, 'epoch': step / steps_per_epoch,
                       'loss': tested['loss'], 'accuracy': accuracy})
        bar.write(f'epoch {step / steps_per_epoch:.3g}  step {step}/{num_steps}  '
                  f'train loss {record["loss"]:.4f}  test accuracy {accuracy:.1%}  '
                  f'{record["images_per_second"]:,.0f} images/s')
      if (step % settings.checkpoint_every == 0 or last or (tests and settings.keep_best)
          or interruption.signal):
        _save(run, checkpoints, state, metrics, accuracy)
      if interruption.signal:
        break
  if settings.profile_steps:
    print(f'train: steps are traced in {Path(workdir) / "profile"}; Perfetto and TensorBoard open '
          'it')
  if interruption.signal:
    raise interrupts.Interrupted(f'{interruption.signal.name} after step {int(state.step)}, which '
                                 'is saved')
  if 'radius' in state.memory:
    radii.save(run, workdir, np.asarray(state.memory['radius']))
  return {'last_step': int(state.step)}


def _restored(run, checkpoints, create_state):
  """(state, progress) of the newest whole checkpoint; None without one.

  Only the structure of the fresh state matters: config.weights are not read again.
  """
  if checkpoints.latest_step() is None:
    return None
  fresh = create_state(weights.fresh_variables(run), memory=run.memory())
  return checkpoint.restore(checkpoints, fresh, examples=run.examples)


def _save(run, checkpoints, state, metrics, accuracy):
  progress = metrics.progress()
  if not jax.jit(training.all_finite)(state.params):
    raise NonFiniteLossError(f'step {int(state.step)}: a parameter is not finite; '
                             f'the newest good checkpoint is step {checkpoints.latest_step()}')
  dataset, config = run.test_data, run.config
  checkpoint.save(checkpoints, state, {
      'model': config['model'], 'dataset': run.data.name, 'data': run.data.reading,
      'num_classes': dataset.num_classes, 'class_names': list(dataset.class_names),
      'image_shape': list(dataset.image_shape), 'mean': _listed(dataset.mean),
      'std': _listed(dataset.std), 'sigma': run.sigma, 'epsilon': config['epsilon'],
      'training_noise': run.training_noise, 'examples': run.examples},
      progress=progress, accuracy=accuracy)


def _listed(constant):
  return np.asarray(constant).tolist()


def _test(run, state):
  """Loss and accuracy of the base classifier on the test split, under noise of config.sigma."""
  batches = data.eval_batches(run.test_data, batch_size=run.train.eval_batch_size)
  return evaluate.loss_and_accuracy(
      run.key('evaluate'), run.network.eval_logits(state.variables), batches,
      sigma=run.config['sigma'], devices=run.devices)
