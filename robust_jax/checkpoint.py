"""Checkpoints of a workdir: saved by training, opened by every later stage and by notebooks."""

from pathlib import Path

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp

from robust_jax import models
from robust_jax.errors import UserError

FOLDER = 'checkpoints'


def manager(workdir, *, keep=2):
  """An Orbax CheckpointManager over DIR/checkpoints that keeps the newest `keep` steps."""
  return ocp.CheckpointManager(
      Path(workdir).resolve() / FOLDER,
      options=ocp.CheckpointManagerOptions(max_to_keep=keep, step_prefix='step'))


def save(checkpoints, state, info):
  """Saves a TrainState, and `info`, plain JSON that tells how to rebuild the network."""
  tree = jax.tree.map(np.asarray, flax.serialization.to_state_dict(state))
  checkpoints.save(int(state.step), args=ocp.args.Composite(
      state=ocp.args.StandardSave(tree), info=ocp.args.JsonSave(info)))


def restore(checkpoints, state, *, step=None):
  """The newest (or given) saved state, in the structure of `state`; None if there is none."""
  step = checkpoints.latest_step() if step is None else step
  if step is None:
    return None
  template = jax.tree.map(np.asarray, flax.serialization.to_state_dict(state))
  saved = _read(checkpoints, step, state=ocp.args.StandardRestore(template))
  return flax.serialization.from_state_dict(state, saved.state)


def _read(checkpoints, step, **items):
  try:
    return checkpoints.restore(step, args=ocp.args.Composite(**items))
  except (ValueError, KeyError, OSError) as error:
    reason = str(error).splitlines()[0]
    raise UserError(f'{checkpoints.directory}: step {step} cannot be read ({reason}); a whole '
                    'checkpoint is allowed') from error


def latest_step(workdir):
  """The newest checkpoint's step in a workdir, or None."""
  if not (Path(workdir) / FOLDER).is_dir():
    return None
  with manager(workdir) as checkpoints:
    return checkpoints.latest_step()


def load(workdir, *, step=None):
  """Opens a trained workdir.

  Args:
    workdir: folder given to the launcher.
    step: which checkpoint; the newest if None.

  Returns:
    (network, variables, info): `types.Network`, what it is evaluated with, and a dict with
    'model', 'num_classes', 'class_names', 'image_shape', 'mean', 'std', 'sigma', 'epsilon',
    'dataset' and 'step'. `network.eval_logits(variables)` is the classifier.

  Raises:
    UserError: the folder has no checkpoint, or one that cannot be read.
  """
  newest = latest_step(workdir)
  if newest is None:
    raise UserError(f'{workdir} has no checkpoint; a workdir that the train stage has run in '
                    'is allowed')
  step = newest if step is None else step
  with manager(workdir) as checkpoints:
    if step not in checkpoints.all_steps():
      raise UserError(f'{workdir}: step is {step}; one of {sorted(checkpoints.all_steps())} '
                      'is allowed')
    saved = _read(checkpoints, step, info=ocp.args.JsonRestore(),
                  state=ocp.args.StandardRestore())
  info, saved = saved.info, saved.state
  model = models.create(info['model']['name'], info['num_classes'],
                        **{k: v for k, v in info['model'].items() if k != 'name'})
  network = models.network(model, mean=_constant(info['mean']), std=_constant(info['std']))
  ema = saved.get('ema')
  variables = {'params': saved['params'], 'batch_stats': saved.get('batch_stats') or {}}
  if ema:
    variables = {'params': ema['0'], 'batch_stats': ema['1'] or {}}
  return network, variables, {**info, 'step': step}


def _constant(value):
  return tuple(value) if isinstance(value, list) else value


