"""The train stage: from the newest checkpoint, if there is one, to the last step."""

import contextlib
import functools
import math
from pathlib import Path

import jax
import numpy as np

from robust_jax import data, training
from robust_jax.devices import parallel, processes
from robust_jax.errors import NonFiniteLossError, OverfittingError, TrainingError, UserError
from robust_jax.stages import memory, weights
from robust_jax.stages.metrics import Metrics
from robust_jax.training import evaluate
from robust_jax.workdir import checkpoint, interrupts, monitoring


def train(run, workdir):
  """Trains the run's network; writes checkpoints, metrics.jsonl and, where there are, radii.npz.

  Batches and draws depend on the seed and the step only, so a run that goes on from a checkpoint
  sees what an undisturbed one would have seen.

  Returns:
    {'last_step'}: the step of the last checkpoint.

  Raises:
    NonFiniteLossError: the loss or a parameter is not finite, or too many steps in a row were
      skipped; the last good checkpoint is kept.
    OverfittingError: as config.train.on_overfitting says; the last checkpoint is kept.
    Interrupted: SIGTERM or SIGINT came; a checkpoint of the last step was saved.
    UserError: a checkpoint cannot be written, or is to be chosen by the test split.
  """
  if not run.trainable:
    print(f'train: skipped, {run.config["model"]["name"]!r} has no parameters')
    return {}
  if run.train.keep_best and not run.data.validation:
    raise UserError('config.data.validation must be more than 0, as 0.1, with config.train.'
                    'keep_best: training images that are held out say which checkpoint is the '
                    'best, as the test split must not (a run begun without goes on with '
                    '--config.train.keep_best=False)')
  _print_unused_fields(run)
  # Mistakes come to light before the folder of checkpoints, by which a workdir counts as begun.
  data.take(run.train_data, [0, run.train_data.num_examples - 1])  # The last is of config.extra.
  aux = {'tangents': run.train_tangents(), 'targets': run.train_targets()}
  _print_targets(run, aux['targets'])
  is_new = processes.of_first('is new', lambda: checkpoint.latest_step(workdir) is None)
  begin = (_initial_state(run), None) if is_new else None
  with (interrupts.postponed() as interruption,
        checkpoint.manager(workdir, keep=run.train.keep_checkpoints,
                           keep_best=run.train.keep_best) as checkpoints, processes.watched()):
    checkpoint.in_sight(workdir, 'train')  # Damaged ones are moved.
    state, progress = begin or _restore(run, workdir)
    if state.step:
      print(f'train: goes on from step {int(state.step)}', flush=True)
    with _way_on(run, workdir, checkpoints):
      state = _take_steps(run, workdir, aux, state, progress, checkpoints, interruption)
  if run.train.profile_steps:
    print(f'train: steps are traced in {Path(workdir) / "profile"}; Perfetto and TensorBoard open '
          'it')
  received = processes.exchange('signal', interruption.signal and interruption.signal.name)
  if any(received):
    raise interrupts.Interrupted(f'{next(filter(None, received))} after step {int(state.step)}, '
                                 'which is saved')
  if 'radius' in state.memory:
    memory.save_radii(run, workdir, np.asarray(state.memory['radius']))
  return {'last_step': int(state.step)}


@contextlib.contextmanager
def _way_on(run, workdir, checkpoints):
  """Adds to a TrainingError what is kept and what may come next."""
  try:
    yield
  except TrainingError as error:
    if checkpoints:
      with processes.unhurried():
        checkpoint.wait(checkpoints)
    processes.barrier('bad loss')  # The end of another process would end this one while it saves.
    step = checkpoint.latest_step(workdir)
    overfits = isinstance(error, OverfittingError)
    change = 'more steps of attack, or larger noise before one,' if overfits else (
        'a smaller learning rate')
    if step is None:
      way_on = f'there is no checkpoint yet; try --redo=train with {change.rstrip(",")}'
    else:
      way_on = (f'the checkpoint of step {step} is kept; --config.weights={workdir} '
                f'--workdir=OTHER with {change} begins at its parameters')
    if overfits:
      way_on += ', and --config.train.on_overfitting=warn goes on here'
    elif run.train.on_bad_loss != 'skip':
      way_on += ', and --config.train.on_bad_loss=skip goes on here without such steps'
    raise type(error)(f'{error}; {way_on}') from None


def _take_steps(run, workdir, aux, state, progress, checkpoints, interruption):
  """The state after the last step, or after that in which a signal came; it is saved."""
  start, settings, key = int(state.step), run.train, run.key('train')
  test_every = max(round(settings.eval_every_epochs * run.steps_per_epoch), 1)
  metrics = Metrics(workdir, start, progress, tensorboard=settings.tensorboard)
  state, train_step = parallel.replicate(state, run.devices), _mapped_step(run)
  attacked_accuracy = _mapped_attack(run)
  agree = parallel.agreement(run.devices)
  batches = _batches(run, workdir, aux, start, metrics)
  for step, batch in enumerate(batches, start + 1):
    state, sums = train_step(state, batch, key)
    metrics.add(sums)
    is_last = step == run.num_steps
    is_tested = is_last or step % test_every == 0
    accuracy = None
    attacked = {}
    if is_tested and attacked_accuracy:
      with metrics.untimed():
        _, counts = jax.device_get(attacked_accuracy(state, batch, key))
        attacked = {name: float(counts[name] / counts['count'])
                    for name in ('fgsm_accuracy', 'pgd_accuracy')}
    if is_tested or step % settings.log_every == 0:
      record = _log(run, metrics, step, batches, **attacked)
    if attacked:
      _judge_overfitting(run, step, batches, **attacked)
    if is_tested:
      accuracy = _test(run, state, metrics, step, batches, record)
    is_stopped = agree(interruption.signal is not None)  # Once: what stops here has to be saved.
    processes.alive()
    if (is_last or is_stopped or step % settings.checkpoint_every == 0
        or (is_tested and settings.keep_best)):
      _save(run, checkpoints, state, metrics, accuracy)
    if is_stopped:
      break
  return state


def _print_unused_fields(run):
  """Says which of config.sigma and config.epsilon the method does not train with."""
  method = run.components['method']
  for name, used, what, rest in (
      ('sigma', 'sigma' in method, 'without noise', 'that of the tests, attacks and certificates'),
      ('epsilon', 'epsilon' in method and (run.training_epsilon or method['epsilon'] == 0),
       'within no radius', 'not used')):
    if run.config[name] > 0 and not used:
      print(f'train: {run.config["method"]["name"]!r} trains {what}; config.{name} '
            f'{run.config[name]:.4g} is {rest}', flush=True)


def _print_targets(run, targets):
  """Says how many targets are those of the labels: few are where images have another order."""
  if targets is not None:
    right = np.mean(targets.argmax(axis=1) == np.asarray(run.train_data.labels[:]))
    print(f'train: the class of {right:.1%} of config.data.targets_file is the label', flush=True)


def _create_state(run, variables, values):
  return training.create_state(variables, run.optimizer(), ema=run.train.ema_decay > 0,
                               memory=values, loss_mean=run.train.max_loss_jump > 0)


def _initial_state(run):
  """The state before the first step: from config.weights or the seed."""
  return _create_state(run, weights.initial_variables(run), memory.initial(run))


def _restore(run, workdir):
  """(state, progress) of the newest whole checkpoint; the initial ones if all are damaged."""
  # Only the structure of this state matters: config.weights are not read again.
  like = _create_state(run, weights.fresh_variables(run), run.memory())
  return checkpoint.restore(workdir, like, examples=run.examples) or (_initial_state(run), None)


def _mapped_step(run):
  """(state, batch, key) -> (state, sums) over the run's devices."""
  return parallel.map_train_step(
      functools.partial(
          training.train_step, network=run.network, optimizer=run.optimizer(), method=run.method,
          steps_per_epoch=run.steps_per_epoch, axis_name=parallel.AXIS,
          accumulation=run.train.accumulation, ema_decay=run.train.ema_decay,
          skip_bad=run.train.on_bad_loss == 'skip', max_loss_jump=run.train.max_loss_jump,
          weight_ascent=_weight_ascent(run.train),
          ascent_start_epoch=run.train.ascent_start_epoch),
      run.devices)


def _weight_ascent(settings):
  if settings.awp:
    return functools.partial(training.awp, gamma=settings.awp)
  return functools.partial(training.sam, rho=settings.sam) if settings.sam else None


def _mapped_attack(run):
  """(state, batch, key) -> (None, sums) of `training.attacked_accuracy`; None without it."""
  if run.train.on_overfitting == 'ignore':
    return None
  return parallel.map_train_step(
      functools.partial(
          training.attacked_accuracy, network=run.network, norm=run.training_norm,
          epsilon=run.training_epsilon, axis_name=parallel.AXIS),
      run.devices)


def _judge_overfitting(run, step, bar, *, fgsm_accuracy, pgd_accuracy):
  """Says that the network overfits catastrophically, or raises OverfittingError, where it does."""
  gap = run.train.overfitting_gap
  if fgsm_accuracy - pgd_accuracy <= gap:
    return
  text = (f'step {step}: on a training batch accuracy is {fgsm_accuracy:.1%} under FGSM and '
          f'{pgd_accuracy:.1%} under PGD, which is catastrophic overfitting '
          f'(config.train.overfitting_gap {gap:g})')
  if run.train.on_overfitting == 'stop':
    raise OverfittingError(text)
  bar.write(text)


def _batches(run, workdir, aux, start, metrics):
  """The batches of the steps after `start`, as a progress bar."""
  batches = data.train_batches(
      run.train_data, batch_size=run.train.batch_size, seed=run.config['seed'],
      augment=run.data.augment, **aux, start_step=start, num_steps=run.num_steps,
      host=processes.index(), num_hosts=processes.count())
  batches = monitoring.traced(batches, Path(workdir) / 'profile', count=run.train.profile_steps)
  return monitoring.bar(metrics.timed(batches), desc='train', initial=start, total=run.num_steps,
                        unit='step')


def _log(run, metrics, step, bar, **more):
  """Writes the means over the steps since the last line of metrics.jsonl; returns the record."""
  record = metrics.flush(step, step / run.steps_per_epoch,
                         learning_rate=float(run.learning_rate()(step - 1)), **more,
                         **monitoring.peak_memory(parallel.own(run.devices)[0]))
  bar.set_postfix_str(f'{_loss(record)}, {_waiting(record)}', refresh=False)
  if 'skipped_steps' in record:
    bar.write(f'step {step}: since the last line {record["skipped_steps"]:,} steps were skipped '
              '(config.train.on_bad_loss)')
  return record


def _loss(record):
  return f'loss {record["loss"]:.4f}' if 'loss' in record else 'every step skipped'


def _waiting(record):
  words = f'{record["input_wait"]:.0%} waiting for input'
  if record.get('slowest_process'):
    words += f' (process {record["slowest_process"]} {record["slowest_input_wait"]:.0%})'
  return words


def _test(run, state, metrics, step, bar, record):
  """Tests the base classifier, under noise of config.sigma, on the test split and what is held out.

  Returns:
    Its accuracy on what is held out of the training images; None where nothing is.
  """
  epoch, accuracies = step / run.steps_per_epoch, {}
  for split, dataset in (('validation', run.validation_data), ('test', run.test_data)):
    if dataset is None:
      continue
    size = run.train.eval_batch_size
    # A line of its own where it takes more than a minute.
    batches = monitoring.bar(data.eval_batches(dataset, batch_size=size), desc=split, delay=60,
                             total=-(-dataset.num_examples // size), unit='batch', leave=False)
    result = evaluate.loss_and_accuracy(
        run.key('evaluate'), run.network.eval_logits(state.variables), batches,
        sigma=run.config['sigma'], devices=run.devices)
    accuracies[split] = result['accuracy']
    metrics.write({'split': split, 'step': step, 'epoch': epoch, 'loss': result['loss'],
                   'accuracy': result['accuracy']})
  undefined = record.get('undefined_attacks')
  warning = f'  attack without a finite gradient on {undefined:.2%} of images' if undefined else ''
  under = f' under noise {run.config["sigma"]:.4g}' if run.config['sigma'] else ''
  shown = '  '.join(f'{split} accuracy {value:.1%}{under}' for split, value in accuracies.items())
  bar.write(f'epoch {epoch:.3g}  step {step}/{run.num_steps}  train {_loss(record)}  {shown}  '
            f'{record["images_per_second"]:,.0f} images/s, {_waiting(record)}{warning}')
  return accuracies.get('validation')


def _save(run, checkpoints, state, metrics, accuracy):
  """Saves a checkpoint, unless the loss, a parameter or a batch statistic is not finite."""
  progress = metrics.progress()
  # The loss is asked too: a gradient that is clipped or is lost leaves finite parameters.
  if not (math.isfinite(progress.get('loss', 0.))
          and jax.jit(training.all_finite)((state.params, state.variables))):
    raise NonFiniteLossError(f'step {int(state.step)}: the loss, a parameter or a batch statistic '
                             'is not finite')
  dataset, config = run.test_data, run.config
  about = {
      'model': config['model'], 'dataset': run.data.name, 'data': run.data.reading,
      'num_classes': dataset.num_classes, 'class_names': list(dataset.class_names),
      'image_shape': list(dataset.image_shape), 'mean': np.asarray(dataset.mean).tolist(),
      'std': np.asarray(dataset.std).tolist(), 'sigma': run.sigma, 'epsilon': config['epsilon'],
      'training_noise': run.training_noise, 'examples': run.examples}
  with processes.unhurried():  # It waits for the one before.
    checkpoint.save(checkpoints, state, about, progress=progress, accuracy=accuracy)
