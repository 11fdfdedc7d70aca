"""Checkpoints of a workdir: saved by training, opened by every later stage and by notebooks.

Orbax writes them in the background and renames them when they are whole, so a crash or a full disk
leaves the ones before. Orbax does not notice a flipped bit, so the sha256 of every file is saved
beside them and compared before anything is read.
"""

import contextlib
import hashlib
import json
import operator
import platform
import shutil
import sys
import time
from pathlib import Path

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from robust_jax import models
from robust_jax.devices import processes
from robust_jax.errors import UserError
from robust_jax.models import torch_weights
from robust_jax.workdir.folder import stages
from robust_jax.workdir.records import read_json

FOLDER = 'checkpoints'
DAMAGED = 'damaged'
# In the format of sha256sum -c.
_FILE_SUMS = 'sha256sums'


class DamagedError(UserError):
  """The files of a checkpoint are not those that were saved."""


@contextlib.contextmanager
def manager(workdir, *, keep=2, keep_best=False):
  """Opens DIR/checkpoints for saving and restoring; waits at the end for what is being written.

  Damaged checkpoints are named on stderr and moved to DIR/damaged first. Of several processes the
  first one does all this; in the others there is nothing to save, and `save` does nothing.

  Args:
    workdir: folder given to the launcher.
    keep: how many of the newest steps are kept.
    keep_best: keep the step with the highest accuracy too, of those that `save` was given one for.

  Yields:
    An Orbax CheckpointManager; None in other processes than the first.

  Raises:
    UserError: the last checkpoint could not be written.
  """
  if processes.index():
    yield None
    return
  _move_damaged(workdir)
  kept, accuracy = [policies.LatestN(keep)], operator.itemgetter('accuracy')
  if keep_best:
    kept.append(policies.BestN(get_metric_fn=accuracy, reverse=False, n=1,
                               keep_checkpoints_without_metrics=False))
  folder = Path(workdir).resolve() / FOLDER
  folder.mkdir(parents=True, exist_ok=True)
  checkpoints = ocp.CheckpointManager(
      folder,
      options=ocp.CheckpointManagerOptions(
          step_prefix='step', cleanup_tmp_directories=True, create=False,
          multiprocessing_options=_alone(),
          # Called when everything is written, before the folder gets its name.
          async_options=ocp.AsyncOptions(post_finalization_callback=lambda: _write_sums(folder)),
          best_fn=accuracy if keep_best else None,
          preservation_policy=policies.AnyPreservationPolicy(kept)))
  try:
    yield checkpoints
    wait(checkpoints)
  finally:
    # After another error, that of the checkpoint in flight would only hide it.
    with contextlib.suppress(Exception):
      checkpoints.close()


def save(checkpoints, state, info, *, progress=None, accuracy=None):
  """Saves a TrainState, in the background.

  Args:
    checkpoints: from `manager`.
    state: TrainState.
    info: dict of plain JSON that tells how to rebuild the network.
    progress: plain JSON that training needs besides the state to go on; see `restore`.
    accuracy: that of this step, on images that are held out, by which `manager` keeps the best;
      None if not known.

  Raises:
    UserError: this or the previous checkpoint could not be written.
  """
  if checkpoints is None:
    return
  tree = jax.tree.map(np.asarray, flax.serialization.to_state_dict(state))
  metrics = None if accuracy is None else {'accuracy': accuracy}
  with _writing(checkpoints):
    checkpoints.save(int(state.step), metrics=metrics, args=ocp.args.Composite(
        state=ocp.args.StandardSave(tree),
        about=ocp.args.JsonSave({'info': info, 'progress': progress})))


def wait(checkpoints):
  """Waits until everything that was saved is on the disk; UserError where it cannot be written."""
  with _writing(checkpoints):
    checkpoints.wait_until_finished()


@contextlib.contextmanager
def _writing(checkpoints):
  try:
    yield
  # Orbax raises what tensorstore does: ValueError and OSError, in this save or the next.
  except (OSError, ValueError, RuntimeError) as error:
    reason = str(error).rpartition(': ')[2]
    raise UserError(
        f'{checkpoints.directory}: a checkpoint cannot be written ({reason}); is the disk full? '
        f'The newest whole one is step {checkpoints.latest_step()}; the same command goes on from '
        'there') from error


def restore(workdir, state, *, examples=None):
  """The newest checkpoint, `manager` having moved damaged ones away.

  Args:
    workdir: folder given to the launcher.
    state: a TrainState of the same structure.
    examples: None, or which the training examples are, as info['examples'] of `save`.

  Returns:
    (TrainState, progress) as saved, NumPy leaves; None if there is none.

  Raises:
    UserError: it holds another structure than that of `state`, or is of other examples.
  """
  step = latest_step(workdir)
  if step is None:
    return None
  folder = _folder(workdir, step)
  leaves, about = read(workdir, step)
  nested = flax.serialization.to_state_dict(state)
  expected = _leaves(nested)
  for name in sorted(expected.keys() ^ leaves.keys()):
    where = 'lacks' if name in expected else 'has'
    raise UserError(f'{folder} {where} {name}: the model, method and optimizer must be those that '
                    'it was saved with')
  saved = about['info'].get('examples')
  if examples is not None and saved != examples:
    raise UserError(f'{folder} is of a training on {describe_examples(saved)}, got '
                    f'{describe_examples(examples)}: give those again, or --redo=train')
  # Orbax may drop nodes without leaves.
  everything = flax.traverse_util.flatten_dict(nested, sep='/', keep_empty_nodes=True) | leaves
  restored = flax.traverse_util.unflatten_dict(everything, sep='/')
  return flax.serialization.from_state_dict(state, restored), about['progress']


def load(workdir, *, step=None):
  """Opens a trained workdir.

  Args:
    workdir: folder given to the launcher.
    step: which checkpoint; 'best' for that of the highest accuracy on the images of
      config.data.validation where the run has kept it (config.train.keep_best); the newest whole
      one if None.

  Returns:
    (network, variables, info): `types.Network`, what it is evaluated with (the moving average
    where there is one), and a dict with 'model', 'num_classes', 'class_names', 'image_shape',
    'mean', 'std', 'sigma', 'training_noise', 'epsilon', 'dataset', 'data', the keyword arguments
    with which `data.load` reads it, 'examples', what it was trained on, 'step', and 'sha256' of
    the variables. Of a workdir that has trained nothing and judged config.weights, or a function,
    it is that; 'step' is None.
    `network.eval_logits(variables)` is the classifier.

  Raises:
    UserError: the folder has no checkpoint, not this one, or it is damaged.
  """
  if not _steps(workdir) and step is None and (judged := _load_judged(workdir)):
    return judged
  step, leaves, info = _read_whole(workdir, step)
  model = models.create(num_classes=info['num_classes'], **info['model'])
  network = _network(model, info)
  saved = flax.traverse_util.unflatten_dict(leaves, sep='/')
  variables = saved.get('ema') or saved
  variables = {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}
  sums = {name: _sha256(leaf) for name, leaf in _leaves(variables).items()}
  identity = hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
  return network, variables, {**info, 'step': step, 'sha256': identity}


def _load_judged(workdir):
  """`load` of a workdir that has judged config.weights, or a function; None where it has not."""
  try:
    config, record = (read_json(Path(workdir) / name) for name in ('config.json', 'run.json'))
    is_function = config['model'].get('function') is not None
    if 'train' in stages(workdir) or not (is_function or record.get('weights')):
      return None
    dataset = record['dataset']
    info = {'model': config['model'], 'dataset': dataset['name'],
            **{name: dataset[name] for name in ('data', 'num_classes', 'class_names',
                                                'image_shape', 'mean', 'std')},
            'sigma': config['sigma'] if config['certify']['sigma'] is None
            else config['certify']['sigma'],
            'epsilon': config['epsilon'], 'training_noise': None, 'examples': None, 'step': None,
            'sha256': None}
  except (UserError, KeyError):
    return None
  path = record.get('weights')
  if path and Path(path).is_dir():
    network, variables, trained = load(path)
    return network, variables, {**info, **{name: trained[name] for name in (
        'mean', 'std', 'training_noise', 'epsilon', 'examples', 'sha256')}}
  model = models.create(num_classes=info['num_classes'], **info['model'])
  variables = {'params': {}, 'batch_stats': {}}
  if path:
    loaded = torch_weights.load(path, model, tuple(info['image_shape']),
                                part=config.get('weights_part'))
    variables, info['sha256'] = loaded.variables, _sha256_file(Path(path))
    if loaded.normalisation and config['data']['mean'] is config['data']['std'] is None:
      info['mean'], info['std'] = map(list, loaded.normalisation)
  return _network(model, info), variables, info


def _network(model, info):
  mean, std = (tuple(value) if isinstance(value, list) else value
               for value in (info['mean'], info['std']))
  return models.network(model, mean=mean, std=std)


def _read_whole(workdir, step):
  """(step, leaves, info) of a checkpoint; of the newest one that is not damaged if step is None."""
  steps = _steps(workdir)
  if not steps:
    raise UserError(f'{workdir} has no checkpoint; the train stage makes them')
  if step == 'best':
    step = _best_step(workdir)
  if step not in (None, *steps):
    raise UserError(f'{workdir}: the step of a checkpoint must be one of {steps}, got {step}')
  candidates = steps[::-1] if step is None else [step]
  for candidate in candidates:
    try:
      leaves, about = read(workdir, candidate)
      return candidate, leaves, about['info']
    except DamagedError as error:
      print(error, file=sys.stderr)
  raise UserError(f'{workdir}/{FOLDER}: {", ".join(f"step_{step}" for step in candidates)} '
                  'damaged, and there is no other')


def read(workdir, step):
  """What a checkpoint holds.

  Returns:
    ({path: NumPy array} of the TrainState, {'info', 'progress'} of `save`).

  Raises:
    DamagedError: its files are not those that were saved.
    UserError: Orbax cannot read them although they are.
  """
  folder = _folder(workdir, step)
  if damage := processes.lasting(lambda: find_damage(workdir, step)):
    raise DamagedError(f'{folder} is damaged ({damage})')
  try:
    alone = _alone()
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
      saved = reader.restore(folder, args=ocp.args.Composite(
          state=ocp.args.StandardRestore(), about=ocp.args.JsonRestore()))
  except Exception as error:  # Of other versions: any of many.
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    raise UserError(f'{folder} is whole but cannot be read ({reason})') from error
  return _leaves(saved.state), saved.about


def fingerprint(path):
  """Which weights a workdir or file has: the sums of its newest checkpoint, or its own; str.

  None where there is none.
  """
  path = Path(path)
  if path.is_file():
    return _sha256_file(path)
  step = latest_step(path)
  sums = _folder(path, step) / _FILE_SUMS if step is not None else None
  return sums.read_text() if sums and sums.is_file() else None


def describe_examples(examples):
  """info['examples'] of `save` in words."""
  if examples is None:
    return 'unknown examples'
  return (f'{examples["num"]} examples of {examples["dataset"]!r} '
          f'(labels {examples["labels_sha256"][:8]})')


def in_sight(workdir, topic):
  """Waits until this process sees the checkpoints that process 0 has.

  A network's file system may show files of another machine late.

  Args:
    workdir: folder.
    topic: once in a run.

  Raises:
    UserError: they do not show.
  """
  if processes.count() == 1:
    return

  def sums():
    return {str(step): _sha256_file(path) for step in _steps(workdir)
            if (path := _folder(workdir, step) / _FILE_SUMS).is_file()}

  told = processes.of_first(topic, sums)
  if processes.lasting(lambda: sums() != told):
    raise UserError(f'{Path(workdir).resolve() / FOLDER} must be one folder that all processes '
                    f'see, has steps {_steps(workdir)} on {platform.node()}, and in process 0 '
                    f'{[int(step) for step in told]}')


def latest_step(workdir):
  """The newest checkpoint's step in a workdir, or None."""
  return max(_steps(workdir), default=None)


def _alone():
  """That this process reads and writes by itself: Orbax would have all of them wait for all."""
  return ocp.options.MultiprocessingOptions(primary_host=processes.index(),
                                            active_processes={processes.index()})


def _best_step(workdir):
  """The step with the highest accuracy that was saved with it; of equals, the last."""
  accuracies = []
  for step in _steps(workdir):
    folder = _folder(workdir, step)
    if damage := find_damage(workdir, step):
      raise UserError(f'{folder} is damaged ({damage}); without it, which step is the best is not '
                      'known: --redo=train makes them again')
    path = folder / 'metrics' / 'metrics'
    if path.is_file():
      accuracies.append((json.loads(path.read_text())['accuracy'], step))
  if not accuracies:
    raise UserError(f'{workdir} has no best checkpoint; config.train.keep_best keeps one')
  return max(accuracies)[1]


def find_damage(workdir, step):
  """How the files of a step's checkpoint differ from those saved: one line; None if they do not."""
  folder = _folder(workdir, step)
  if not folder.is_dir():
    return 'it is not there'
  try:
    lines = (folder / _FILE_SUMS).read_text().splitlines()
  except (OSError, ValueError):
    return f'{_FILE_SUMS} cannot be read'
  saved = {name: digest for digest, _, name in (line.partition('  ') for line in lines)}
  # What a file system or a desktop puts there by itself, such as .nfs0001, is no damage.
  files = {name: digest for name, digest in _file_sums(folder).items()
           if name in saved or not Path(name).name.startswith('.')}
  for name in sorted(saved.keys() | files.keys()):
    if saved.get(name) != files.get(name):
      return (f'{name} is missing' if name not in files else
              f'{name} is not in {_FILE_SUMS}' if name not in saved else
              f'sha256 of {name} differs')
  return None


def _write_sums(folder):
  """Writes the sums of the files of the checkpoint that is about to get its name."""
  for written in folder.glob('step_*.orbax-checkpoint-tmp'):
    (written / _FILE_SUMS).write_text(''.join(
        f'{digest}  {name}\n' for name, digest in _file_sums(written).items()))


def _file_sums(folder):
  """{name: sha256} of the files of a checkpoint.

  But for the files beside the items, times that Orbax adds afterwards and nothing reads.
  """
  files = sorted(path for path in folder.glob('*/**/*') if path.is_file())
  return {str(path.relative_to(folder)): _sha256_file(path) for path in files}


def _sha256_file(path):
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _move_damaged(workdir):
  """Moves damaged checkpoints to DIR/damaged; names them on stderr."""
  for step in _steps(workdir):
    if damage := find_damage(workdir, step):
      folder = _folder(workdir, step)
      aside = folder.parents[1] / DAMAGED / f'{folder.name}-{time.time_ns()}'
      aside.parent.mkdir(exist_ok=True)
      shutil.move(folder, aside)
      print(f'{folder} is damaged ({damage}); it is moved to {aside}', file=sys.stderr)


def _folder(workdir, step):
  return Path(workdir).expanduser().resolve() / FOLDER / f'step_{step}'


def _steps(workdir):
  names = [path.name for path in (Path(workdir).expanduser() / FOLDER).glob('step_*')]
  return sorted(int(name[5:]) for name in names if name[5:].isdigit())


def _leaves(tree):
  """{path: NumPy array} of nested dicts; empty dicts and None have no leaf."""
  flat = flax.traverse_util.flatten_dict(tree, sep='/')
  return {name: np.asarray(leaf) for name, leaf in flat.items() if leaf is not None}


def _sha256(leaf):
  head = f'{leaf.dtype.name}{list(leaf.shape)}'.encode()
  return hashlib.sha256(head + np.ascontiguousarray(leaf).tobytes()).hexdigest()
