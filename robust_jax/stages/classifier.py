"""Where a stage gets its classifier from: a training, or weights that were brought along."""

import hashlib
import sys
from pathlib import Path

import numpy as np

from robust_jax import checkpoint, models, torch_weights
from robust_jax import workdir as workdirs
from robust_jax.errors import UserError


def check(run, workdir, wanted):
  """Raises UserError where the wanted stages lack what they start from, before hours are spent.

  Args:
    run: the Run.
    workdir: its folder.
    wanted: the stages to be run, those to be redone included.
  """
  weights = run.config['weights']
  if weights is not None and not Path(weights).exists():
    raise UserError(f'config.weights is {weights!r}, which is not there; a workdir or a PyTorch '
                    'checkpoint (.safetensors, .pth, .pt, .tar) is allowed')
  if 'train' in wanted:
    return
  if not {'attack', 'certify'} & set(wanted) or not run.trainable:
    return
  step = _last_step(workdir)
  if step is None and weights is None:
    raise UserError(f'--stages={",".join(wanted)}: {workdir} has no finished training; run the '
                    'train stage first, or give config.weights')
  damage = step and checkpoint.find_damage(workdir, step)
  if damage:
    raise UserError(f'{workdir}: the last checkpoint, of step {step}, is damaged ({damage}); '
                    '--stages=train makes it again from the one before')


def lost(workdir):
  """Whether the last checkpoint of a finished training is gone or damaged; it is named."""
  step = _last_step(workdir)
  damage = step and checkpoint.find_damage(workdir, step)
  if damage:
    print(f'train: the last checkpoint, of step {step}, is damaged ({damage})', file=sys.stderr)
  return bool(damage)


def initial_variables(run):
  """What training starts from: config.weights, or a fresh initialisation."""
  if run.config['weights'] is not None:
    return _brought(run)
  return models.init(run.key('init'), run.model, run.test_data.image_shape)


def load(run, workdir):
  """The classifier that is attacked and certified.

  Returns:
    (logits_fn, origin): images -> logits, and a dict that says which parameters these are.

  Raises:
    UserError: there are none, or they are damaged.
  """
  if not run.trainable:
    return run.network.eval_logits({'params': {}, 'batch_stats': {}}), {'checkpoint_step': None}
  step = _last_step(workdir)
  if step is None:
    return run.network.eval_logits(_brought(run)), {
        'checkpoint_step': None, 'weights_sha256': _sha256(Path(run.config['weights']))}
  chosen = 'best' if run.config['checkpoint'] == 'best' else step
  network, variables, info = checkpoint.load(workdir, step=chosen)
  return network.eval_logits(variables), {'checkpoint_step': info['step']}


def _last_step(workdir):
  """The step that a finished training ended with; None without one."""
  record = workdirs.stages(workdir).get('train', {})
  return record.get('last_step') if record.get('status') == 'done' else None


def _brought(run):
  """The variables of config.weights."""
  path, dataset, model = Path(run.config['weights']), run.test_data, run.config['model']
  if not path.is_dir():
    arrays = torch_weights.read(path)
    _check_normalisation(path, torch_weights.normalisation(arrays), dataset)
    return torch_weights.convert(arrays, run.model, dataset.image_shape, path=path)
  _, variables, info = checkpoint.load(path)
  for what, there, here in (('model', info['model'], model),
                            ('num_classes', info['num_classes'], dataset.num_classes)):
    if there != here:
      raise UserError(f'config.weights is {str(path)!r}, whose {what} is {there}; {here} is '
                      'allowed')
  return variables


def _check_normalisation(path, found, dataset):
  here = tuple(np.broadcast_to(value, dataset.image_shape[-1:]).tolist()
               for value in (dataset.mean, dataset.std))
  if found is not None and not np.allclose(found, here, atol=1e-4):
    raise UserError(f'config.weights is {str(path)!r}, whose images are normalised by mean and std '
                    f'{found}; config.data.mean and config.data.std, now {here}, have to be these')


def _sha256(path):
  if path.is_dir():
    return None
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
