"""Checkpoints of a workdir: saved by training, opened by every later stage and by notebooks.

Orbax writes them in the background and renames them when they are whole, so a crash or a full disk
leaves the ones before. Orbax does not notice a flipped bit, so the sha256 of every file and of
every leaf is saved with them: those of the files are compared before anything is read, those of
the leaves with what was read.
"""

import contextlib
import hashlib
import json
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
from robust_jax.errors import UserError

FOLDER = 'checkpoints'
DAMAGED = 'damaged'
# In the format of sha256sum -c.
_FILE_SUMS = 'sha256sums'


class DamagedError(Exception):
  """A checkpoint that is not what was saved. The message says where."""


@contextlib.contextmanager
def manager(workdir, *, keep=2, keep_best=False):
  """Opens DIR/checkpoints for saving and restoring; waits at the end for what is being written.

  Damaged checkpoints are named on stderr and moved to DIR/damaged first.

  Args:
    workdir: folder given to the launcher.
    keep: how many of the newest steps are kept.
    keep_best: keep the step with the highest accuracy too, of those that `save` was given one for.

  Yields:
    An Orbax CheckpointManager.

  Raises:
    UserError: the last checkpoint could not be written.
  """
  kept = [policies.LatestN(keep)]
  if keep_best:
    kept.append(policies.BestN(get_metric_fn=_accuracy, reverse=False, n=1,
                               keep_checkpoints_without_metrics=False))
  folder = Path(workdir).resolve() / FOLDER
  for step in _steps(workdir):
    try:
      _check_files(_folder(workdir, step))
    except DamagedError as error:
      _move_aside(_folder(workdir, step), error)
  checkpoints = ocp.CheckpointManager(
      folder,
      options=ocp.CheckpointManagerOptions(
          step_prefix='step', cleanup_tmp_directories=True,
          # Called when everything is written, before the folder gets its name.
          async_options=ocp.AsyncOptions(post_finalization_callback=lambda: _seal(folder)),
          best_fn=_accuracy if keep_best else None,
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
    accuracy: test accuracy at this step, by which `manager` keeps the best; None if not known.

  Raises:
    UserError: this or the previous checkpoint could not be written.
  """
  tree = jax.tree.map(np.asarray, flax.serialization.to_state_dict(state))
  about = {'info': info, 'progress': progress}
  sums = {name: _sha256(leaf) for name, leaf in _leaves(tree).items()}
  metrics = None if accuracy is None else {'accuracy': accuracy}
  with _writing(checkpoints):
    checkpoints.save(int(state.step), metrics=metrics, args=ocp.args.Composite(
        state=ocp.args.StandardSave(tree),
        about=ocp.args.JsonSave({**about, 'sha256': {**sums, 'about': _sha256_json(about)}})))


def wait(checkpoints):
  """Waits until everything that was saved is on the disk.

  Raises:
    UserError: it could not be written.
  """
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
        f'{checkpoints.directory}: a checkpoint cannot be written ({reason}); room on the disk is '
        f'needed. The newest whole one is step {checkpoints.latest_step()}; the same command '
        'goes on from there') from error


def restore(checkpoints, state, *, examples=None):
  """The newest whole checkpoint.

  A damaged one is named on stderr and moved to DIR/damaged, and the one before it is used.

  Args:
    checkpoints: from `manager`.
    state: a TrainState of the same structure.
    examples: None, or which the training examples are, as info['examples'] of `save`.

  Returns:
    (TrainState, progress) as saved, NumPy leaves; None if there is none.

  Raises:
    UserError: it holds another structure than that of `state`, or is of other examples.
  """
  for step in sorted(checkpoints.all_steps(), reverse=True):
    folder = checkpoints.directory / f'step_{step}'
    try:
      tree, about = _read(folder)
    except DamagedError as error:
      _move_aside(folder, error)
      checkpoints.reload()
      continue
    nested = flax.serialization.to_state_dict(state)
    wanted = _leaves(nested)
    for name in sorted(wanted.keys() ^ tree.keys()):
      where = 'lacks' if name in wanted else 'has'
      raise UserError(f'{folder} {where} {name}; a checkpoint of the same model, method and '
                      'optimizer is allowed')
    found = about['info'].get('examples')
    if examples is not None and found != examples:
      raise UserError(f'{folder} is of a training on {describe_examples(found)}, and the config '
                      f'now gives {describe_examples(examples)}; those there, or --redo=train, are '
                      'allowed')
    # Orbax may drop nodes without leaves.
    everything = flax.traverse_util.flatten_dict(nested, sep='/', keep_empty_nodes=True) | tree
    restored = flax.traverse_util.unflatten_dict(everything, sep='/')
    return flax.serialization.from_state_dict(state, restored), about['progress']
  return None


def load_memory(workdir, *, step):
  """The per-example memory of a checkpoint, for a training that starts from it.

  Args:
    workdir: folder given to the launcher.
    step: which checkpoint.

  Returns:
    ({name: [num_train]}, info['examples'] of `save`, which says of which training examples).

  Raises:
    UserError: the checkpoint is damaged.
  """
  folder = _folder(workdir, step)
  try:
    tree, about = _read(folder)
  except DamagedError as error:
    raise UserError(f'{folder} is damaged ({error}); a whole checkpoint is allowed') from error
  memory = flax.traverse_util.unflatten_dict(tree, sep='/').get('memory', {})
  return memory, about['info'].get('examples')


def describe_examples(examples):
  """info['examples'] of `save` in words."""
  if examples is None:
    return 'unknown examples'
  return (f'{examples["num"]} examples of {examples["dataset"]!r} '
          f'(labels {examples["labels_sha256"][:8]})')


def _move_aside(folder, error):
  aside = folder.parents[1] / DAMAGED / f'{folder.name}-{time.time_ns()}'
  aside.parent.mkdir(exist_ok=True)
  shutil.move(folder, aside)
  print(f'{folder} is damaged ({error}); it is moved to {aside}', file=sys.stderr)


def latest_step(workdir):
  """The newest checkpoint's step in a workdir, or None."""
  return max(_steps(workdir), default=None)


def find_damage(workdir, step):
  """What is wrong with the checkpoint of a step: one line, or None where it is whole."""
  if step not in _steps(workdir):
    return 'it is not there'
  try:
    _read(_folder(workdir, step))
  except DamagedError as error:
    return str(error)
  return None


def load(workdir, *, step=None):
  """Opens a trained workdir.

  Args:
    workdir: folder given to the launcher.
    step: which checkpoint; 'best' for that of the highest test accuracy where the run has kept it
      (config.train.keep_best); the newest whole one if None.

  Returns:
    (network, variables, info): `types.Network`, what it is evaluated with (the moving average
    where there is one), and a dict with 'model', 'num_classes', 'class_names', 'image_shape',
    'mean', 'std', 'sigma', 'training_noise', 'epsilon', 'dataset', 'data', the keyword arguments
    with which `data.load` reads it, 'examples', what it was trained on, 'step', and 'sha256' of
    the variables.
    `network.eval_logits(variables)` is the classifier.

  Raises:
    UserError: the folder has no checkpoint, not this one, or it is damaged.
  """
  steps = _steps(workdir)
  if not steps:
    raise UserError(f'{workdir} has no checkpoint; a workdir that the train stage has run in '
                    'is allowed')
  if step == 'best':
    step = best_step(workdir)
  elif step is not None and step not in steps:
    raise UserError(f'{workdir}: step is {step}; one of {steps} is allowed')
  wanted = steps[::-1] if step is None else [step]
  for step in wanted:
    try:
      tree, about = _read(_folder(workdir, step))
      break
    except DamagedError as error:
      print(f'{_folder(workdir, step)} is damaged ({error})', file=sys.stderr)
  else:
    raise UserError(f'{workdir}/{FOLDER}: {", ".join(f"step_{step}" for step in wanted)} damaged; '
                    'a whole checkpoint is allowed')
  info = about['info']
  model = models.create(info['model']['name'], info['num_classes'],
                        **{k: v for k, v in info['model'].items() if k != 'name'})
  network = models.network(model, mean=_constant(info['mean']), std=_constant(info['std']))
  saved = flax.traverse_util.unflatten_dict(tree, sep='/')
  variables = saved.get('ema') or saved
  variables = {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}
  sums = {name: _sha256(leaf) for name, leaf in _leaves(variables).items()}
  return network, variables, {**info, 'step': step, 'sha256': _sha256_json(sums)}


def _folder(workdir, step):
  return Path(workdir).resolve() / FOLDER / f'step_{step}'


def best_step(workdir):
  """The step with the highest test accuracy; of equals, the last.

  Raises:
    UserError: no step was kept for its accuracy, or one that may be the best is damaged.
  """
  found = []
  for step in _steps(workdir):
    try:
      _check_files(_folder(workdir, step))
    except DamagedError as error:
      raise UserError(f'{_folder(workdir, step)} is damaged ({error}); without it, which step is '
                      'the best is not known: --redo=train makes them again') from error
    path = _folder(workdir, step) / 'metrics' / 'metrics'
    if path.is_file():
      found.append((json.loads(path.read_text())['accuracy'], step))
  if not found:
    raise UserError(f'{workdir} has kept no best checkpoint; a run with config.train.keep_best is '
                    'allowed')
  return max(found)[1]


def _accuracy(metrics):
  return metrics['accuracy']


def _steps(workdir):
  names = [path.name for path in (Path(workdir) / FOLDER).glob('step_*')]
  return sorted(int(name[5:]) for name in names if name[5:].isdigit())


def _read(folder):
  """({path: leaf}, about) of the checkpoint in a folder, compared with its sums.

  Raises:
    DamagedError: a leaf is not what was saved, or the files cannot be read.
  """
  _check_files(folder)
  try:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
      saved = reader.restore(folder, args=ocp.args.Composite(
          state=ocp.args.StandardRestore(), about=ocp.args.JsonRestore()))
    tree = _leaves(saved.state)
    about = dict(saved.about)
    sums = about.pop('sha256')
    found = {**{name: _sha256(leaf) for name, leaf in tree.items()},
             'about': _sha256_json(about)}
  # A flipped bit in the bookkeeping of Orbax surfaces as any of many errors.
  except Exception as error:
    raise DamagedError((str(error).splitlines() or [type(error).__name__])[0][:200]) from error
  wrong = [name for name in sorted(sums.keys() | found.keys())
           if sums.get(name) != found.get(name)]
  if wrong:
    raise DamagedError(f'sha256 of {wrong[0]} differs'
                       + (f', and of {len(wrong) - 1} more' if wrong[1:] else ''))
  return tree, about


def _seal(folder):
  """Writes the sums of the files of the checkpoint that is about to get its name.

  But for the two files beside the items, times that Orbax adds afterwards and nothing reads.
  """
  for written in folder.glob('step_*.orbax-checkpoint-tmp'):
    files = sorted(path for path in written.glob('*/**/*') if path.is_file())
    (written / _FILE_SUMS).write_text(''.join(
        f'{_sha256_file(path)}  {path.relative_to(written)}\n' for path in files))


def _check_files(folder):
  """Raises DamagedError unless the files are those that were sealed."""
  try:
    lines = (folder / _FILE_SUMS).read_text().splitlines()
  except (OSError, ValueError) as error:
    raise DamagedError(f'{_FILE_SUMS} cannot be read') from error
  for line in lines:
    expected, _, name = line.partition('  ')
    path = folder / name
    if not path.is_file():
      raise DamagedError(f'{name} is missing')
    if _sha256_file(path) != expected:
      raise DamagedError(f'sha256 of {name} differs')


def _sha256_file(path):
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _leaves(tree):
  """{path: NumPy array} of nested dicts; empty dicts and None have no leaf."""
  flat = flax.traverse_util.flatten_dict(tree, sep='/')
  return {name: np.asarray(leaf) for name, leaf in flat.items() if leaf is not None}


def _sha256(leaf):
  head = f'{leaf.dtype.name}{list(leaf.shape)}'.encode()
  return hashlib.sha256(head + np.ascontiguousarray(leaf).tobytes()).hexdigest()


def _sha256_json(value):
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _constant(value):
  return tuple(value) if isinstance(value, list) else value
