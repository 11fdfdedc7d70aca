"""Where a stage gets its classifier from: a training, or weights that were brought along."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robust_jax import models
from robust_jax import workdir as workdirs
from robust_jax.config import sections
from robust_jax.errors import UserError
from robust_jax.models import torch_weights
from robust_jax.types import LogitsFn
from robust_jax.workdir import checkpoint


class Classifier(NamedTuple):
  """What is attacked and certified.

  Attributes:
    logits_fn: images -> logits.
    origin: a dict that says which parameters these are.
    training_noise: standard deviation of the noise that they were trained with, pixel units; None
      where nothing tells.
  """

  logits_fn: LogitsFn
  origin: dict[str, Any]
  training_noise: float | None


def check(run, workdir, wanted):
  """Raises UserError where the wanted stages lack what they start from, before hours are spent.

  Args:
    run: the Run.
    workdir: its folder.
    wanted: the stages to be run, those to be redone included.
  """
  if not run.trainable or not {'train', 'attack', 'certify', 'verify', 'label'} & set(wanted):
    return
  weights, step = run.config['weights'], _last_step(workdir)
  begun = 'train' in wanted and checkpoint.latest_step(workdir) is not None
  if weights is not None and step is None and not begun and not Path(weights).exists():
    raise UserError(f'config.weights is {weights!r}, which is not there; a workdir or a PyTorch '
                    'checkpoint (.safetensors, .pth, .pt, .tar) is allowed')
  if 'train' in wanted:
    return
  if step is None and run.config['new_head']:
    raise UserError(f'--stages={",".join(wanted)}: config.new_head is True, and the new last layer '
                    'has to be trained; the train stage first, or False, is allowed')
  if step is None and (weights is None or 'train' in workdirs.stages(workdir)):
    raise UserError(f'--stages={",".join(wanted)}: {workdir} has no finished training; run the '
                    'train stage first, or, where none was begun, give config.weights')
  damage = step and checkpoint.find_damage(workdir, step)
  if damage:
    raise UserError(f'{workdir}: the last checkpoint, of step {step}, is damaged ({damage}); '
                    '--stages=train makes it again from the one before')


def check_same(run, workdir, stage):
  """Raises UserError where a finished stage has judged another classifier than this one."""
  origin = workdirs.stages(workdir)[stage].get('origin')
  now = load(run, workdir).origin
  if origin not in (None, now):
    raise UserError(f'{workdir}: the {stage} stage has judged another classifier ({origin} there, '
                    f'{now} now); --redo={stage} is allowed')


def lost(workdir):
  """Whether the last checkpoint of a finished training is gone or damaged; it is named."""
  step = _last_step(workdir)
  damage = step and checkpoint.find_damage(workdir, step)
  if damage:
    print(f'train: the last checkpoint, of step {step}, is damaged ({damage})', file=sys.stderr)
  return bool(damage)


def initial_variables(run):
  """What training starts from: config.weights, or a fresh initialisation.

  With config.new_head the last layer of the weights, whatever its number of classes, is
  initialised as that of a network without weights; one line says so.

  Raises:
    UserError: the weights are not those of this network.
  """
  if run.config['weights'] is None:
    return fresh_variables(run)
  brought = _brought(run)[0]
  if not run.config['new_head']:
    return brought
  fresh = fresh_variables(run)
  if models.HEAD not in fresh['params']:
    raise UserError(f'config.new_head is True, and {run.config["model"]["name"]} has no layer '
                    f'called {models.HEAD!r}; False is allowed')
  old, new = (tree['params'][models.HEAD]['kernel'].shape[-1] for tree in (brought, fresh))
  print(f'train: {run.config["weights"]} but for its last layer of {old} classes; a new one of '
        f'{new} is initialised (config.new_head)', flush=True)
  return {kind: {name: (fresh if name.startswith(models.HEAD) else brought)[kind][name]
                 for name in fresh[kind]} for kind in ('params', 'batch_stats')}


def fresh_variables(run):
  """The initialisation that the seed makes."""
  return models.init(run.key('init'), run.model, run.test_data.image_shape)


def initial_memory(run):
  """What is remembered of each training example at first: as config.weights has it, or fresh.

  It is fresh where config.weights was trained on other examples or against another norm, in whose
  units a radius is, or config.new_head asks for other classes. One line says what was done.
  """
  fresh, path = run.memory(), run.config['weights']
  if not fresh or path is None or not Path(path).is_dir():
    return fresh
  # As for the variables: of the finished training, or of a folder that tells of none the newest.
  there, examples = checkpoint.load_memory(
      path, step=_last_step(path) or checkpoint.latest_step(path))
  kept = fresh.keys() & there.keys()
  if not kept:
    print(f'train: {path} has no {", ".join(sorted(fresh))} of each example; each begins anew',
          flush=True)
    return fresh
  names, why = ', '.join(sorted(kept)), ''
  norm = _attack_norm(workdirs.stages(path).get('train', {}).get('config', {}))
  if run.config['new_head']:
    why = 'config.new_head'
  elif examples != run.examples:
    why = (f'it is of {checkpoint.describe_examples(examples)}, and here are '
           f'{checkpoint.describe_examples(run.examples)}')
  elif norm not in (None, _attack_norm(run.config)):  # A folder of checkpoints tells none.
    why = f'it is of norm {norm}, and here is {_attack_norm(run.config)}'
  if why:
    print(f'train: the {names} of each example in {path} is not taken over ({why}); each begins '
          'anew', flush=True)
    return fresh
  warm_up = run.config['method'].get('warmup_epochs')
  print(f'train: the {names} of each example is that of {path}'
        + (f', until the warm-up of {warm_up} epochs sets it anew' if warm_up else ''), flush=True)
  return {name: there.get(name, values) for name, values in fresh.items()}


def _attack_norm(config):
  return config.get('method', {}).get('attack', {}).get('norm')


def load(run, workdir):
  """The classifier that is attacked and certified.

  Returns:
    `Classifier`.

  Raises:
    UserError: there are none, or they are damaged.
  """
  if not run.trainable:
    source = models.external.source(run.model.function)
    return Classifier(
        run.network.eval_logits({'params': {}, 'batch_stats': {}}),
        {'checkpoint_step': None, 'classifier_sha256': source and _sha256(source)}, None)
  step = _last_step(workdir)
  if step is None:
    variables, identity, noise = _brought(run)
    return Classifier(run.network.eval_logits(variables),
                      {'checkpoint_step': None, 'classifier_sha256': identity}, noise)
  chosen = 'best' if run.config['checkpoint'] == 'best' else step
  network, variables, info = checkpoint.load(workdir, step=chosen)
  return Classifier(network.eval_logits(variables),
                    {'checkpoint_step': info['step'], 'classifier_sha256': info['sha256']},
                    info.get('training_noise'))


def _last_step(workdir):
  """The step that a finished training ended with; None without one."""
  record = workdirs.stages(workdir).get('train', {})
  return record.get('last_step') if record.get('status') == 'done' else None


def _brought(run):
  """(variables, sha256, training noise) of config.weights, with as many classes as they have."""
  path, dataset = Path(run.config['weights']), run.test_data
  if not path.is_dir():
    arrays = torch_weights.read(path)
    _check_normalisation(path, torch_weights.normalisation(arrays), dataset)
    num_classes = torch_weights.num_classes(arrays, run.model, dataset.image_shape, path=path)
    _check_alike(run, 'num_classes', num_classes, dataset.num_classes)
    model = run.model.clone(num_classes=num_classes)
    variables = torch_weights.convert(arrays, model, dataset.image_shape, path=path)
    return variables, _sha256(path), None
  last = _last_step(path)
  if last is None and 'train' in workdirs.stages(path):
    raise UserError(f'config.weights is {str(path)!r}, whose training is not finished; a finished '
                    'one is allowed')
  _, variables, info = checkpoint.load(path, step=last)
  here = {'model': run.config['model'], 'num_classes': dataset.num_classes,
          'image_shape': list(dataset.image_shape)}
  # A model field that the other run did not know yet is at its default.
  there = {**info, 'model': json.loads(sections.component(
      'model', **info['model']).to_json())}
  for name, value in here.items():
    _check_alike(run, name, there[name], value)
  _check_normalisation(path, (info['mean'], info['std']), dataset)
  return variables, info['sha256'], info.get('training_noise')


def _check_alike(run, name, there, here):
  """Raises UserError where `name` of config.weights is not what it is here."""
  if _essential(there) == _essential(here) or (name == 'num_classes' and run.config['new_head']):
    return
  hint = (', or any with config.new_head=True, which initialises the last layer anew'
          if name == 'num_classes' else '')
  raise UserError(f'config.weights is {run.config["weights"]!r}, whose {name} is {there}; {here} '
                  f'is allowed{hint}')


def _essential(value):
  """A model's config but for what changes how it is computed, and not what."""
  if not isinstance(value, dict):
    return value
  return {name: entry for name, entry in value.items() if name not in ('dtype', 'remat')}


def _check_normalisation(path, found, dataset):
  if found is None:
    return
  here = (dataset.mean, dataset.std)
  channels = dataset.image_shape[-1]
  alike = all(np.size(there) in (1, channels) and np.allclose(there, now, atol=1e-4)
              for there, now in zip(found, here))
  if not alike:
    raise UserError(f'config.weights is {str(path)!r}, whose images are normalised by mean and std '
                    f'{found}; config.data.mean and config.data.std, now {here}, have to be these')


def _sha256(path):
  if path.is_dir():
    return None
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
