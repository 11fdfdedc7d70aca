"""What a config may say: its sections with their defaults, and configs that were saved.

Every section of a config holds the keyword arguments of one function, found by `name` in a table
where there is a choice. The function's signature is the schema (see `schema`). So a new method,
attack or model is configured, and checked, by the signature it has anyway. Lengths and radii are in
[0, 1] pixel units.
"""

import inspect
import json
import os
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import ml_collections

from robust_jax import attacks, certification, data, models, named, schema, training, workdir
from robust_jax.attacks import threat_models
from robust_jax.bounds.crown import Method as BoundMethod
from robust_jax.errors import UserError, choices
from robust_jax.training import methods
from robust_jax.types import (
    Attack,
    Count,
    Fraction,
    Index,
    Interval,
    NonNegative,
    Positive,
    Probability,
)

TABLES = {
    'model': models.MODELS,
    'method': methods.METHODS,
    'attack': attacks.ATTACKS | attacks.SUITES,
    'optimizer': training.OPTIMIZERS,
    'schedule': training.SCHEDULES,
    'certify': certification.CERTIFIERS,
}
# Fields of this name are given to every function that takes them, where its section has None.
SHARED = ('epsilon', 'sigma')
# Marks a field that changes no result, so that it may change between the runs of a stage.
FREE = 'changes no result'


class ExperimentSettings(NamedTuple):
  """The fields of the config that are in no section."""

  # Decides everything random: initialisation, order, augmentation, noise, attacks, certificates. A
  # jax key holds 32 bits of it.
  seed: Annotated[int, Interval(0, 2**32 - 1)] = 0
  # Radius of the perturbations that training defends against; evaluation.epsilons has its own.
  epsilon: NonNegative = 0.
  # Standard deviation of the noise, in training, attack and certification; 0: no smoothing.
  sigma: NonNegative = 0.
  # What training starts from, and what is attacked and certified where nothing was trained: a
  # workdir, or a PyTorch checkpoint (.safetensors, .pth), package:FILE if an installed package has
  # it; None: a fresh initialisation.
  weights: str | None = None
  # Which network of a PyTorch checkpoint that has several: the name of its state_dict, as
  # 'ema_state_dict', or the start of its layers' names, as 'ema'.
  weights_part: str | None = None
  # Initialise the last layer of `weights` anew and train from there: for other classes.
  new_head: bool = False
  # Which parameters are attacked and certified: the 'last', or the 'best' by accuracy on the images
  # of data.validation (train.keep_best).
  checkpoint: Literal['last', 'best'] = 'last'


class DataSettings(NamedTuple):
  """config.data: the images that are trained and tested on."""

  # A TFDS dataset of images with classes, as 'cifar100' or 'imagenet_resized/32x32'; 'folder':
  # data_dir/SPLIT/CLASS/IMAGE; or a file FILE.npz of arrays train_images, train_labels, test_images
  # and test_labels, as `python -m robust_jax.data prepare` writes it (see data.arrays.read).
  name: str = 'digits'
  # Folder of prepared TFDS datasets, or that of 'folder'; None: TFDS's own.
  data_dir: Annotated[str | None, FREE] = None
  # 'none', 'crop' (pad 4 and crop), 'crop_flip' or 'resized_crop' (a random part, and flip).
  augment: data.Augmentation = 'none'
  # Height and width of the images in pixels; None: the dataset's own. Images of another size are
  # resized (short side to image_size * 256 / 224) and their middle kept; but for those of a .npz.
  image_size: Count | None = None
  # 1 (grey) or 3 (RGB); None: the dataset's own, 3 of a folder. A .npz is not converted.
  channels: Count | None = None
  # Input normalisation (images - mean) / std, one number or one a channel; None: that in
  # the file .npz or of robust_jax.data.DATASETS, (0,) and (1,) for what is not there.
  mean: tuple[Fraction, ...] | None = None
  std: tuple[Positive, ...] | None = None
  # Black pixels added on every side.
  pad: Index = 0
  # Tangent directions of each training image, for the methods that use them: the principal
  # directions of its so many neighbours of the same class, or a .npy file [images, d, k] of
  # orthonormal ones; 0: none.
  tangents: Index = 0
  tangent_neighbors: Count = 20
  tangents_file: str | None = None
  # Another classifier's probabilities of the classes for each training image, for the methods that
  # use them: a .npy file [images, classes], as --stages=label writes it.
  targets_file: str | None = None
  # What is trained on and tested on, as TFDS writes it: 'train[:90%]'. None: 'train'; 'test', or
  # validation where there is no test split with labels.
  train_split: str | None = None
  test_split: str | None = None
  # Held out of the training images, the same ones in every run: a share below 1, or their number.
  # They are tested on along with the test split, and choose the best checkpoint.
  validation: NonNegative = 0.

  @property
  def reading(self):
    """The keyword arguments with which `data.load` reads it."""
    return {'data_dir': self.data_dir, 'image_size': self.image_size, 'channels': self.channels,
            'mean': self.mean, 'std': self.std, 'pad': self.pad}

  def load(self, use):
    """The dataset that is for 'train', 'validation' or 'test'."""
    split = self.test_split or 'test' if use == 'test' else self.train_split or 'train'
    dataset = data.load(self.name, split, **self.reading, at_once=False)
    if use == 'test' or not self.validation:
      return dataset
    rest, held_out = data.hold_out(dataset, self.validation)
    return rest if use == 'train' else held_out


class ExtraSettings(NamedTuple):
  """config.extra: examples of a second source in every training batch, for self-training."""

  # A dataset, as data.name; a file .npz may be of images alone, with `labels` beside it.
  name: str | None = None
  # Which split of the dataset, and the folder that it is in; None: data.data_dir.
  split: str = 'train'
  data_dir: str | None = None
  # Pseudo-labels in place of the source's own: a file .npy, .txt (one a line) or .tsv (columns idx
  # and label), as --stages=label writes it.
  labels: str | None = None
  # Their share of train.batch_size, 0: none; an epoch is one pass through the other examples.
  share: Annotated[float, Interval(0, 1, open_high=True)] = 0.
  # Of the loss of one of them, in the weighted mean that is minimised. The other metrics of
  # training count every example alike.
  weight: NonNegative = 1.

  def mix(self, settings, dataset):
    """The training split `dataset` of config.data, with these among them."""
    if not self.share:
      return dataset
    found = data.extra.load(
        self.name, split=self.split, labels=self.labels,
        data_dir=self.data_dir or settings.data_dir, image_size=settings.image_size,
        channels=settings.channels, pad=settings.pad, like=dataset)
    return data.extra.mix(dataset, found, share=self.share, weight=self.weight)


class TrainSettings(NamedTuple):
  """config.train."""

  # Images a step, over all devices.
  batch_size: Count = 256
  # Length of the training that schedules refer to.
  num_epochs: Positive = 90.
  # Stop after this many steps if that is sooner; 0: after num_epochs.
  num_steps: Index = 0
  # Parts that a batch goes through the network in, for less memory.
  accumulation: Count = 1
  # Gradients are taken at weights w + v that raise the loss, for a second pass: v of length awp |w|
  # in each layer (adversarial weight perturbation, Wu et al. 2020), or of length sam over all of
  # them (sharpness-aware minimisation, Foret et al. 2021); 0: at w. And the first epoch with v.
  awp: NonNegative = 0.
  sam: NonNegative = 0.
  ascent_start_epoch: Index = 0
  # Of the moving average of parameters that is tested and certified; 0: none.
  ema_decay: Annotated[float, Interval(0, 1, open_high=True)] = 0.
  # After a step whose loss or gradient is not finite: 'stop' ends the training, with status 3 and
  # its last good checkpoint; 'skip' leaves everything as it was before the step, counts it
  # (skipped_steps) and takes the next one, and ends likewise after more than 10 of them in a row.
  on_bad_loss: Annotated[Literal['stop', 'skip'], FREE] = 'stop'
  # With 'skip': a step is also skipped whose loss is above so many times the mean loss of the last
  # 20 steps or so, where that is positive; 0: none.
  max_loss_jump: NonNegative = 0.
  # At each evaluation, accuracy on a training batch under FGSM and PGD-10 at the method's radius.
  # Where the first is larger by more than overfitting_gap, 'warn' says so, and 'stop' ends the
  # training, with status 3 and its last checkpoint. 'ignore': not measured.
  on_overfitting: Annotated[Literal['ignore', 'warn', 'stop'], FREE] = 'ignore'
  overfitting_gap: Annotated[Fraction, FREE] = 0.3
  # Steps a line of metrics.jsonl.
  log_every: Annotated[Count, FREE] = 50
  # Epochs between evaluations on the test split, and on data.validation.
  eval_every_epochs: Positive = 1.
  eval_batch_size: Annotated[Count, FREE] = 512
  # Steps between checkpoints, and how many of the newest are kept.
  checkpoint_every: Annotated[Count, FREE] = 500
  keep_checkpoints: Annotated[Count, FREE] = 2
  # Keep the one of the highest accuracy on data.validation too: every evaluation then saves one.
  keep_best: Annotated[bool, FREE] = False
  # Write TensorBoard events besides metrics.jsonl.
  tensorboard: Annotated[bool, FREE] = False
  # Steps to trace with jax.profiler, after the first ten; as --profile.
  profile_steps: Annotated[Index, FREE] = 0


class EvaluationSettings(NamedTuple):
  """config.evaluation: the attack stage, accuracy under config.attack at each radius."""

  # Radii, in pixel units of config.attack's norm; config.epsilon is that of training.
  epsilons: tuple[Positive, ...] = (0.25, 0.5, 0.75, 1.)
  # Noise of the smoothed classifier that is attacked; None: that of certification, 0: the network
  # itself is attacked.
  sigma: NonNegative | None = None
  # A workdir whose network is attacked in place of this one, which then judges what is found.
  transfer_from: str | None = None
  # Noises that the attack on a smoothed classifier averages over.
  num_noise: Count = 32
  # Noises and error probability of the prediction that judges it.
  n: Count = 1000
  alpha: Probability = 0.001
  # Every stride-th test image; of those the first num_images, 0: all.
  stride: Count = 20
  num_images: Index = 0
  # Images attacked at once, over all devices.
  batch_size: Annotated[Count, FREE] = 64
  # Images shown in the report.
  gallery: Annotated[Index, FREE] = 8


class ImagesSettings(NamedTuple):
  """config.certify_images: which test images are certified."""

  # Every stride-th test image; of those the first num_images, 0: all.
  stride: Count = 1
  num_images: Index = 0
  # How many are certified in one call.
  images_per_call: Annotated[Count, FREE] = 50


class SandwichSettings(NamedTuple):
  """config.sandwich: how far each certified image is from a confirmed adversarial example.

  DDN finds a candidate, and evaluation.n draws a point judge the line through it at
  evaluation.alpha an image (`attacks.smallest`).
  """

  # Noises that DDN averages over, None: evaluation.num_noise. Of few its candidates are often none.
  num_noise: Count | None = None
  # Its steps.
  num_steps: Annotated[int, Interval(2)] = 40
  # Halvings of the line, to a part of 2^-halvings.
  halvings: Index = 5


class BoundSettings(NamedTuple):
  """config.bound: --stages=bound, deterministic bounds of the network itself, without noise.

  Every image is attacked by PGD on the margin as well, and what neither the attack nor the bound
  decides may go to the exact verifier.
  """

  # Of the balls, which are cut to [0, 1]; None: that of config.attack.
  norm: threat_models.Norm | None = None
  # Radii; None: a quarter and half of the smallest of evaluation.epsilons, and these.
  epsilons: tuple[Positive, ...] | None = None
  # What is bounded how (docs/bounds.md): from 'ibp', which costs three passes, to 'alpha'.
  method: BoundMethod = 'crown'
  # Of Adam, for 'alpha'.
  alpha_steps: Count = 20
  # Of PGD.
  num_steps: Count = 40
  restarts: Count = 1
  # Every stride-th test image; of those the first num_images, 0: all; None: as evaluation.
  stride: Count | None = None
  num_images: Index | None = None
  # Images bounded at once, over all devices, and entries of a layer at once: time for memory.
  batch_size: Annotated[Count, FREE] = 16
  chunk: Annotated[Count, FREE] = 256
  # Whether the exact verifier goes on with what is open, and how many seconds it has an image.
  exact: bool = False
  time_limit: Positive = 60.

  def complete(self, attack_norm, evaluation):
    """The same without None.

    Args:
      attack_norm: of the attack stage.
      evaluation: EvaluationSettings.
    """
    taken = {name: getattr(evaluation, name) for name in ('stride', 'num_images')
             if getattr(self, name) is None}
    radii, least = self.epsilons, min(evaluation.epsilons, default=0.)
    if radii is None:
      radii = (least / 4, least / 2, *evaluation.epsilons)
    return self._replace(norm=self.norm or attack_norm, epsilons=tuple(sorted({*radii})), **taken)


class VerifySettings(NamedTuple):
  """config.verify: --stages=verify."""

  # How many of the logged certificates, or images that were bounded, are made again, 0: all.
  sample: Index = 0


class CheckSettings(NamedTuple):
  """config.check: --stages=check, whether attacks on this classifier can be trusted."""

  # The first of the images of the attack stage.
  num_images: Count = 50
  # In pixel units of config.attack's norm; None: the middle one of evaluation.epsilons.
  epsilon: Positive | None = None
  # Of PGD and APGD, of PGD, of Square.
  num_steps: Count = 100
  restarts: Count = 3
  num_queries: Count = 500


class LabelSettings(NamedTuple):
  """config.label: --stages=label, pseudo-labels of a dataset by this classifier."""

  # As data.name and data.data_dir, whose values they have where None.
  name: str | None = None
  split: str = 'train'
  data_dir: str | None = None
  # The file that is written: .tsv, labels for config.extra.labels, or .npy, the share of each class
  # in the votes of an image's noisy copies, for config.data.targets_file.
  output: str | None = None
  # Noisy copies of each image that vote; 0: the image itself. None: 100 for a smoothed classifier
  # whose network was trained with noise, else 0.
  num_noise: Index | None = None


class AttackImageSettings(NamedTuple):
  """config.attack_image: --stages=attack_image, PGD in the norm of config.attack on an image file.
  """

  # The file, of any format that Pillow reads, cut to the size of the dataset's images; or
  # package:FILE of an installed package.
  file: str | None = None
  # Its class, by name or number; None: what the classifier says.
  label: str | None = None
  # A class to lead to besides, likewise; None: none.
  target: str | None = None
  # Radius in pixel units; None: the largest of evaluation.epsilons.
  epsilon: Positive | None = None
  # Steps of length 2.5 epsilon / num_steps.
  num_steps: Count = 40


class ExportSettings(NamedTuple):
  """config.export: --stages=export, the network as ONNX and VNN-LIB questions about images."""

  # The first of the images of the attack stage, where there is no bound.jsonl, whose undecided
  # images are taken.
  num_images: Count = 10
  # Of those, radius in linf in pixel units; None: the middle one of evaluation.epsilons.
  epsilon: Positive | None = None
  # Seconds for each in instances.csv.
  timeout: Positive = 60.


SECTIONS = {'data': DataSettings, 'extra': ExtraSettings, 'train': TrainSettings,
            'evaluation': EvaluationSettings, 'certify_images': ImagesSettings,
            'sandwich': SandwichSettings, 'bound': BoundSettings, 'verify': VerifySettings,
            'check': CheckSettings, 'label': LabelSettings, 'attack_image': AttackImageSettings,
            'export': ExportSettings}
# What a stage's results depend on.
_WEIGHTS = ('weights', 'weights_part', 'new_head')
_CLASSIFIER = ('seed', 'sigma', 'data', 'model', *_WEIGHTS, 'checkpoint')
STAGE_FIELDS = {
    'train': ('seed', 'epsilon', 'sigma', 'data', 'extra', 'model', *_WEIGHTS,
              'method', 'optimizer', 'schedule', 'train'),
    'attack': (*_CLASSIFIER, 'attack', 'evaluation', 'certify.sigma', 'certify.batch_size'),
    'certify': (*_CLASSIFIER, 'certify', 'certify_images'),
    'sandwich': (*_CLASSIFIER, 'certify', 'certify_images', 'sandwich', 'evaluation.num_noise',
                 'evaluation.n', 'evaluation.alpha'),
    'bound': (*_CLASSIFIER, 'bound', 'attack.norm', 'evaluation.epsilons', 'evaluation.stride',
              'evaluation.num_images'),
}
# Of those, what changes no result.
FREE_FIELDS = tuple(
    f'{section}.{name}' for section, settings in SECTIONS.items()
    for name, field in schema.fields(settings).items()
    if FREE in getattr(field.hint, '__metadata__', ()))


def component(kind, /, name, **kwargs):
  """A config section {name, **keyword arguments}, with the function's own defaults filled in.

  Args:
    kind: a key of `TABLES`.
    name: an entry of that table, or 'package.module:name'.
    **kwargs: values that differ from the defaults.

  Returns:
    ConfigDict. Arguments named in `SHARED` are None unless given: the experiment's value.
  """
  return section(find(kind, name), name=name, **kwargs)


def section(function, /, **kwargs):
  """A config section with the keyword defaults of `function`, updated by `kwargs`."""
  values = {}
  for name, field in schema.fields(function).items():
    if field.default is None or (name in SHARED and field.default is inspect.Parameter.empty):
      values[name] = ml_collections.config_dict.placeholder(schema.plain_type(field.hint))
    elif field.default is not inspect.Parameter.empty:
      values[name] = field.default
  values.update({name: value for name, value in kwargs.items() if value is not None})
  return ml_collections.ConfigDict(values)


def resolve(config):
  """The config as checked, plain nested dicts, with JSON's types; ~ is the home folder in paths.

  Raises:
    UserError: a field that is missing, unknown, of the wrong type or out of range.
  """
  config = _expanded(json.loads(json.dumps(config.to_dict())))
  top = schema.fields(ExperimentSettings)
  schema.check_names('config', config, [*top, *SECTIONS, *TABLES])
  for name, field in top.items():
    schema.check_value(f'config.{name}', config[name], field.hint)
  for name, settings in SECTIONS.items():
    _check_section(f'config.{name}', config[name], settings)
  for kind in TABLES:
    _check_component(f'config.{kind}', kind, config[kind])
  return _with_orders(config)


def _with_orders(config):
  """Writes out what order='auto' means, so that a workdir without that word has the same config."""
  for attack in (config['attack'], config['method'].get('attack')):
    if attack and attack['name'] in ('pgd', 'fgsm') and attack['order'] == 'auto':
      attack['order'] = threat_models.meant_order(attack['norm'])
  return config


def _expanded(values):
  """The values with the home folder in place of a ~ that a string begins with."""
  if isinstance(values, dict):
    return {name: _expanded(value) for name, value in values.items()}
  return os.path.expanduser(values) if isinstance(values, str) else values


def _check_component(path, kind, values):
  if not isinstance(values, dict) or 'name' not in values:
    raise UserError(f'{path} must have a name and keyword arguments, got {values!r}')
  function = find(kind, values['name'], path)
  _check_section(path, {name: value for name, value in values.items() if name != 'name'}, function)


def _check_section(path, values, function):
  fields = schema.fields(function)
  schema.check_names(path, values, fields)
  for name, field in fields.items():
    if field.hint == Attack:
      _check_component(f'{path}.{name}', 'attack', values[name])
    elif name not in SHARED or values[name] is not None:
      schema.check_value(f'{path}.{name}', values[name], field.hint)


def find(kind, name, path=None):
  """The function of a section: an entry of its table, or the user's own 'package.module:name'.

  Args:
    kind: a key of `TABLES`.
    name: of the function.
    path: what errors call the section; config.KIND if None.

  Raises:
    UserError: there is none, or its annotations cannot be read.
  """
  path = path or f'config.{kind}'
  if isinstance(name, str) and ':' in name:
    function = (models.own.constructor(name) if kind == 'model'
                else named.load(name, f'{path}.name'))
    try:
      schema.fields(function)
    except Exception as error:  # Anything may happen where annotations are read.
      raise UserError(f'{path}.name is {name!r}, whose annotations cannot be read '
                      f'({named.line(error)})') from error
    for argument, field in schema.fields(function).items():
      if not schema.is_known(field.hint):
        raise UserError(f'{path}.name is {name!r}, whose {argument} must be annotated as int, '
                        f'float, bool, str, tuple[...], Literal[...] or Attack, got {field.hint}')
    for argument, parameter in inspect.signature(function).parameters.items():
      if (kind != 'model' and parameter.kind is parameter.KEYWORD_ONLY
          and parameter.annotation is parameter.empty
          and not (kind == 'attack' and argument in ('epsilon', 'noise', 'targets'))):
        annotation = 'Attack' if argument == 'attack' else 'float'
        raise UserError(f'{path}.name is {name!r}, whose {argument} must be annotated to be a '
                        f'field, as {argument}: {annotation}')
    return function
  if name not in TABLES[kind]:
    module, dot, last = str(name).rpartition('.')
    raise UserError(choices(f'{path}.name', TABLES[kind], name)
                    + (f"; one of your own is '{module}:{last}'" if dot else ''))
  return TABLES[kind][name]


def saved_config(folder):
  """The ConfigDict of a workdir, typed as when it was made, so that overrides are checked.

  Raises:
    UserError: there is no config.json that can be read, or it names what there is not any more.
  """
  path = Path(folder) / 'config.json'
  try:
    return _typed(json.loads(path.read_text(encoding='utf-8')))
  except UserError as error:
    raise UserError(f'{path}: {error}') from None
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f'{path} must be the config of a run, got {type(error).__name__}: '
                    f'{error}') from error


def _typed(saved):
  """The ConfigDict of saved nested dicts; fields and sections younger than it are at defaults."""
  config = section(ExperimentSettings, **{name: saved[name] for name in ExperimentSettings._fields
                                          if name in saved})
  for name, settings in SECTIONS.items():
    config[name] = section(settings, **with_tuples(saved.get(name, {})))
  for kind in TABLES:
    config[kind] = _saved_component(kind, saved[kind])
  return config


def _saved_component(kind, saved):
  nested = {name: _saved_component('attack', value)
            for name, value in saved.items() if isinstance(value, dict)}
  return component(kind, **with_tuples({**saved, **nested}))


def check_workdir(folder, config, redo=()):
  """Makes sure that a folder is empty or a workdir of the same experiment.

  Args:
    folder: the workdir.
    config: the resolved config.
    redo: names of the stages that are to run anew.

  Raises:
    UserError: it holds something else, or has results of another stage with a config that differs
      in a field they depend on.
  """
  workdir.check_empty_or_run(folder)
  for stage, record in workdir.results(folder).items():
    changed = changed_fields(record['config'], config, stage)
    if changed and stage not in redo and record['status'] != workdir.REDO:
      # A certificate more needs nothing anew, if it has a workdir of its own.
      beside = '' if {name.split('.')[1] for name in changed} - {'certify', 'certify_images'} else (
          f', or, to certify the same network besides, add {workdir.certify_beside(folder)}')
      raise UserError(f'{folder}: the {stage} stage ran with another config '
                      f'({"; ".join(changed)}); give the same values, another --workdir, or '
                      f'--redo={stage}{beside}')


def changed_fields(saved, config, stage):
  """The fields that decide the results of `stage` and differ: ['config.seed was 0, is 1', ...].

  A field that an older version did not have counts as at its default.
  """
  old = _with_orders(_expanded(json.loads(json.dumps(_typed(saved).to_dict()))))
  old, new = flat(old), flat(config)
  # A TFDS dataset is the same wherever it is; of a folder of images the place is the name.
  free = {*FREE_FIELDS} - ({'data.data_dir'} if config['data']['name'] == 'folder' else set())
  return [f'config.{name} was {old.get(name)!r}, is {new.get(name)!r}'
          for name in sorted({*old, *new})
          if any(f'{name}.'.startswith(f'{field}.') for field in STAGE_FIELDS[stage])
          and name not in free and old.get(name) != new.get(name)]


def flat(config, prefix=''):
  """{dotted field: value} of a nested config."""
  values = {}
  for name, value in config.items():
    values |= (flat(value, f'{prefix}{name}.') if isinstance(value, dict) and value
               else {f'{prefix}{name}': value})
  return values


def with_tuples(values):
  """JSON has lists where functions and configs have tuples."""
  return {name: tuple(value) if isinstance(value, list) else value
          for name, value in values.items()}
