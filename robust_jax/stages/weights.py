"""Where a stage gets its classifier from: the training of its workdir, or config.weights."""

import hashlib
import json
import sys
from typing import Any, NamedTuple

import jax
import numpy as np

from robust_jax import data, models, named
from robust_jax import workdir as workdirs
from robust_jax.config import sections
from robust_jax.errors import UserError
from robust_jax.models import torch_weights
from robust_jax.terminal import say_once
from robust_jax.types import LogitsFn
from robust_jax.workdir import checkpoint

# Test images on which a classifier from elsewhere is tried, and how many make a class.
_NUM_CHECKED = 100
_LEAST_OF_CLASS = 5


class Classifier(NamedTuple):
  """What is attacked and certified.

  Attributes:
    logits_fn: images -> logits.
    origin: a dict that says which parameters these are.
    training_noise: standard deviation of the noise that they were trained with, pixel units; None
      if unknown.
  """

  logits_fn: LogitsFn
  origin: dict[str, Any]
  training_noise: float | None


def check(run, workdir, wanted):
  """Raises UserError if the wanted stages, those to be redone included, lack what they start from.
  """
  judging = {'attack', 'certify', 'sandwich', 'bound', 'verify', 'check', 'label',
             'attack_image', 'export'} & set(wanted)
  if not run.trainable and judging:
    check_classes(run, load(run, workdir).logits_fn)
  if not run.trainable or not {'train', *judging} & set(wanted):
    return
  weights, step = run.config['weights'], finished_step(workdir)
  resumes = 'train' in wanted and checkpoint.latest_step(workdir) is not None
  if weights is not None and step is None and not resumes:
    path = _path(run)
    wrong = None if path.exists() else 'which does not exist'
    if (path.is_dir() and not (path / 'config.json').exists()
        and checkpoint.latest_step(path) is None):
      wrong = 'a folder without a run'
    if wrong:
      raise UserError('config.weights must be a workdir or a PyTorch checkpoint (.safetensors, '
                      f'.pth, .pt, .tar), got {weights!r}, {wrong}')
  if 'train' in wanted:
    return
  stages = f'--stages={",".join(wanted)}'
  if step is None and run.config['new_head']:
    raise UserError(f'{stages}: with config.new_head=True the last layer has to be trained first; '
                    'add the train stage')
  if step is None and (weights is None or 'train' in workdirs.stages(workdir)):
    raise UserError(f'{stages}: {workdir} has no finished training; run the train stage first or, '
                    'in a folder without a training, give config.weights')
  damage = step and checkpoint.find_damage(workdir, step)
  if damage:
    raise UserError(f'{workdir}: the last checkpoint, of step {step}, is damaged ({damage}); '
                    '--stages=train makes it again from the one before')
  if step is None and not _path(run).is_dir():
    check_classes(run, load(run, workdir).logits_fn)


def check_classes(run, logits_fn):
  """Says on stderr where a classifier from elsewhere seems to have its classes in another order.

  On some test images: where no more are right than by chance, or nearly all of one class are taken
  for another. So do images that are normalised twice, or not at all.

  Args:
    run: the Run.
    logits_fn: images -> logits.
  """
  dataset = run.test_data
  if not dataset.num_examples:
    return
  index = np.unique(np.linspace(0, dataset.num_examples - 1, _NUM_CHECKED).astype(int))
  batch = data.take(dataset, index)
  predicted = np.argmax(jax.jit(lambda f, x: f(x))(logits_fn, batch.images), axis=-1)
  labels, names = np.asarray(batch.labels), dataset.class_names
  right, chance = np.mean(predicted == labels), np.bincount(labels).max() / len(labels)
  says = []
  if right <= chance + 2 * np.sqrt(chance * (1 - chance) / len(labels)):
    says.append(f'{right:.0%} of {len(labels)} test images are right, which is chance')
  for label in np.flatnonzero(np.bincount(labels) >= _LEAST_OF_CLASS):
    taken = np.bincount(predicted[labels == label], minlength=dataset.num_classes)
    other = np.argmax(taken)
    if other != label and taken[other] >= 0.8 * taken.sum():
      says.append(f'{taken[other]} of {taken.sum()} test images of class {label} '
                  f'({names[label]}) are taken for class {other} ({names[other]})')
  if says:
    print(f'{run.config["weights"] or run.model.function}: {"; ".join(says[:3])}: are its classes '
          f'in the order of {run.data.name}, and are its images normalised once?', file=sys.stderr,
          flush=True)


def check_same_classifier(run, workdir, stage):
  """Raises UserError if a finished stage has judged another classifier than this one."""
  judged = workdirs.stages(workdir)[stage].get('origin')
  origin = load(run, workdir).origin
  if judged not in (None, origin):
    raise UserError(f'{workdir}: the {stage} stage has judged another classifier ({judged}, now '
                    f'{origin}); repeat it with --redo={stage}')


def is_damaged(workdir):
  """Whether the last checkpoint of a finished training is gone or damaged; one line says so."""
  step = finished_step(workdir)
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
  weights = _load_weights(run)
  _check_normalisation(run, weights.normalisation)
  loaded = weights.variables
  if not run.config['new_head']:
    return loaded
  fresh = fresh_variables(run)
  if models.HEAD not in fresh['params']:
    raise UserError(f'config.new_head must be False for {run.config["model"]["name"]}, which has '
                    f'no layer called {models.HEAD!r}')
  loaded_classes, num_classes = (tree['params'][models.HEAD]['kernel'].shape[-1]
                                 for tree in (loaded, fresh))
  print(f'train: {run.config["weights"]} but for its last layer of {loaded_classes} classes; a new '
        f'one of {num_classes} is initialised (config.new_head)', flush=True)
  return {kind: {name: (fresh if name.startswith(models.HEAD) else loaded)[kind][name]
                 for name in fresh[kind]} for kind in ('params', 'batch_stats')}


def fresh_variables(run):
  """The initialisation that the seed makes."""
  return models.init(run.key('init'), run.model, run.test_data.image_shape)


def load(run, workdir):
  """The classifier that is attacked and certified.

  It is the model itself if that has no parameters, else the finished training of the workdir, else
  config.weights.

  Returns:
    `Classifier`.

  Raises:
    UserError: there are no weights, or they are damaged or not those of this network.
  """
  network, step = run.network, finished_step(workdir) if run.trainable else None
  if not run.trainable:
    source = named.source(run.model.function)
    variables = {'params': {}, 'batch_stats': {}}
    identity, training_noise = source and _sha256(source), None
  elif step is None:
    variables, identity, training_noise, normalisation = _load_weights(run)
    network = models.network(run.model, **_normalisation(run, normalisation))
  else:
    best = run.config['checkpoint'] == 'best'
    if best and not run.data.validation:
      print(f'{workdir}: the best checkpoint was chosen by accuracy on the test split, on which it '
            'is judged: its figures are too good (config.data.validation holds other images out)',
            file=sys.stderr)
    network, variables, info = checkpoint.load(workdir, step='best' if best else step)
    names, now = info.get('class_names'), list(run.test_data.class_names)
    if names not in (None, now):  # Folders and files may have changed under the same name.
      raise UserError(f'{workdir}: it was trained on classes {", ".join(names)}, '
                      f'{run.data.name!r} has {", ".join(now)} now; --redo=train trains anew')
    step, identity, training_noise = info['step'], info['sha256'], info.get('training_noise')
  return Classifier(network.eval_logits(variables),
                    {'checkpoint_step': step, 'classifier_sha256': identity}, training_noise)


def finished_step(workdir):
  """The last step of a workdir's finished training; None without one."""
  record = workdirs.stages(workdir).get('train', {})
  return record.get('last_step') if record.get('status') == 'done' else None


class _Weights(NamedTuple):
  """What config.weights holds: variables, their sha256, `Classifier.training_noise`, and the
  (mean, std) that they were trained with, None if unknown.
  """

  variables: dict[str, Any]
  identity: str
  training_noise: float | None
  normalisation: tuple | None


def _load_weights(run):
  """The _Weights of a run; UserError where they do not fit it."""
  path = _path(run)
  return _load_workdir(run, path) if path.is_dir() else _load_torch(run, path)


def _path(run):
  return named.file(run.config['weights'], 'config.weights')


def _load_torch(run, path):
  dataset = run.test_data
  loaded = torch_weights.load(path, run.model, dataset.image_shape,
                              part=run.config['weights_part'])
  _check_equal(run, 'num_classes', loaded.num_classes, dataset.num_classes)
  return _Weights(loaded.variables, _sha256(path), None, loaded.normalisation)


def _load_workdir(run, path):
  dataset, step = run.test_data, finished_step(path)
  if step is None and workdirs.stages(path).get('train', {}).get('status') not in (
      None, workdirs.STOPPED):
    raise UserError(f'config.weights must be a finished training, got {str(path)!r}, whose '
                    'training is not finished')
  _, variables, info = checkpoint.load(path, step=step)
  # A model field that is younger than the other run is at its default there.
  model = json.loads(sections.component('model', **info['model']).to_json())
  # These change how it is computed, and not what.
  loaded, expected = ({name: value for name, value in fields.items()
                       if name not in ('dtype', 'remat')}
                      for fields in (model, run.config['model']))
  _check_equal(run, 'model', loaded, expected)
  _check_equal(run, 'num_classes', info['num_classes'], dataset.num_classes)
  _check_equal(run, 'image_shape', info['image_shape'], list(dataset.image_shape))
  names = info.get('class_names', [])
  if set(names) == set(dataset.class_names):
    _check_equal(run, 'class_names', names, list(dataset.class_names))
  return _Weights(variables, info['sha256'], info.get('training_noise'),
                  (info['mean'], info['std']))


def _check_equal(run, name, loaded, expected):
  """Raises UserError if `name` of config.weights is not what this run expects."""
  if loaded == expected or (name == 'num_classes' and run.config['new_head']):
    return
  hint = ('; config.new_head=True takes any number and initialises the last layer anew'
          if name == 'num_classes' else '')
  raise UserError(f'config.weights must have {name} {expected}, got {loaded} in '
                  f'{run.config["weights"]!r}{hint}')


def _check_normalisation(run, loaded):
  """Raises UserError if the images of the run are not normalised as those of config.weights."""
  dataset = run.test_data
  expected, channels = (dataset.mean, dataset.std), dataset.image_shape[-1]
  if loaded is not None and not all(
      np.size(a) in (1, channels) and np.allclose(a, b, atol=1e-4)
      for a, b in zip(loaded, expected)):
    raise UserError(f'config.data.mean and config.data.std must be those of '
                    f'{run.config["weights"]!r} (config.weights), {loaded}, got {expected}')


def _normalisation(run, loaded):
  """{'mean', 'std'} of weights that are judged: their own, unless config.data says another."""
  dataset = run.test_data
  if loaded is None or {run.data.mean, run.data.std} != {None}:
    _check_normalisation(run, loaded)
    if loaded is None and {run.data.mean, run.data.std} == {None}:
      say_once(f'{run.config["weights"]} says nothing of the normalisation of its images; that of '
               f'{run.data.name} is used, mean {dataset.mean}, std {dataset.std} '
               '(config.data.mean, config.data.std)')
    return {'mean': dataset.mean, 'std': dataset.std}
  if any(np.size(values) not in (1, dataset.image_shape[-1]) for values in loaded):
    _check_normalisation(run, loaded)
  mean, std = (tuple(values) if np.ndim(values) else values for values in loaded)
  return {'mean': mean, 'std': std}


def _sha256(path):
  if path.is_dir():
    return None
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
