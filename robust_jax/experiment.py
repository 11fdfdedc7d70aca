"""From a config to a run: the only reader of ConfigDicts.

Every section of a config holds the keyword arguments of one function, found by `name` in a table
where there is a choice. The function's signature is the schema (see `schema`). So a new method,
attack or model is configured, and checked, by the signature it has anyway.
"""

import dataclasses
import difflib
import functools
import hashlib
import importlib.util
import inspect
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from robust_jax import attacks, certification, data, keys, models, parallel, schema, training
from robust_jax.certification import sources
from robust_jax.errors import UserError
from robust_jax.training import methods
from robust_jax.types import (
    Attack,
    Count,
    Fraction,
    Index,
    Interval,
    Method,
    Network,
    NonNegative,
    Positive,
    Probability,
)

TABLES = {
    'model': models.MODELS,
    'method': methods.METHODS,
    'attack': attacks.ATTACKS,
    'optimizer': training.OPTIMIZERS,
    'schedule': training.SCHEDULES,
    'certify': certification.CERTIFIERS,
}
# Fields of this name are given to every function that takes them, where its section has None.
SHARED = ('epsilon', 'sigma')


class DataSettings(NamedTuple):
  """config.data."""

  name: str
  data_dir: str | None = None
  augment: data.Augmentation = 'none'
  image_size: Count | None = None
  channels: Count | None = None
  mean: tuple[Fraction, ...] | None = None
  std: tuple[Positive, ...] | None = None
  pad: Index = 0
  tangents: Index = 0
  tangent_neighbors: Count = 20
  tangents_file: str | None = None
  train_split: str | None = None
  test_split: str | None = None

  @property
  def reading(self):
    """The keyword arguments with which `data.load` reads it."""
    return {'data_dir': self.data_dir, 'image_size': self.image_size, 'channels': self.channels,
            'mean': self.mean, 'std': self.std, 'pad': self.pad}

  def load(self, use):
    """The dataset that is for 'train' or 'test'."""
    split = {'train': self.train_split, 'test': self.test_split}[use] or use
    return data.load(self.name, split, **self.reading)


class ExtraSettings(NamedTuple):
  """config.extra: examples of a second source in every training batch."""

  name: str | None = None
  split: str = 'train'
  data_dir: str | None = None
  labels: str | None = None
  share: Annotated[float, Interval(0, 1, open_high=True)] = 0.
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


class Experiment(NamedTuple):
  """The fields of the config that are in no section."""

  # A jax key holds 32 bits of a seed.
  seed: Annotated[int, Interval(0, 2**32 - 1)] = 0
  epsilon: NonNegative = 0.
  sigma: NonNegative = 0.
  weights: str | None = None
  new_head: bool = False
  checkpoint: Literal['last', 'best'] = 'last'


class TrainSettings(NamedTuple):
  """config.train."""

  batch_size: Count = 128
  num_epochs: Positive = 10.
  num_steps: Index = 0
  accumulation: Count = 1
  ema_decay: Annotated[float, Interval(0, 1, open_high=True)] = 0.
  log_every: Count = 50
  eval_every_epochs: Positive = 1.
  eval_batch_size: Count = 512
  checkpoint_every: Count = 500
  keep_checkpoints: Count = 2
  keep_best: bool = False
  tensorboard: bool = False
  profile_steps: Index = 0


class EvaluationSettings(NamedTuple):
  """config.evaluation: the empirical stage."""

  epsilons: tuple[Positive, ...] = (0.25, 0.5, 0.75, 1.)
  sigma: NonNegative | None = None
  num_noise: Count = 32
  n: Count = 1000
  alpha: Probability = 0.001
  stride: Count = 1
  num_images: Index = 0
  batch_size: Count = 64
  gallery: Index = 8


class ImagesSettings(NamedTuple):
  """config.certify_images: which test images are certified."""

  stride: Count = 1
  num_images: Index = 0
  images_per_call: Count = 50


class VerifySettings(NamedTuple):
  """config.verify: which logged certificates are made again."""

  sample: Index = 0


SECTIONS = {'data': DataSettings, 'extra': ExtraSettings, 'train': TrainSettings,
            'evaluation': EvaluationSettings, 'certify_images': ImagesSettings,
            'verify': VerifySettings}
# What a stage's results depend on; the rest may change between runs of it.
_CLASSIFIER = ('seed', 'sigma', 'data', 'model', 'weights', 'new_head', 'checkpoint')
STAGE_FIELDS = {
    'train': ('seed', 'epsilon', 'sigma', 'data', 'extra', 'model', 'weights', 'new_head',
              'method', 'optimizer', 'schedule', 'train'),
    'attack': (*_CLASSIFIER, 'attack', 'evaluation', 'certify.sigma', 'certify.batch_size'),
    'certify': (*_CLASSIFIER, 'certify', 'certify_images'),
}
# Of those, what changes no result.
FREE_FIELDS = ('data.data_dir', 'train.log_every', 'train.keep_checkpoints',
                'train.checkpoint_every', 'train.eval_batch_size', 'evaluation.batch_size',
                'train.keep_best', 'train.tensorboard', 'train.profile_steps',
                'evaluation.gallery', 'certify_images.images_per_call')


def component(kind, /, name, **kwargs):
  """A config section {name, **keyword arguments}, with the function's own defaults filled in.

  Args:
    kind: a key of `TABLES`.
    name: an entry of that table.
    **kwargs: values that differ from the defaults.

  Returns:
    ConfigDict. Arguments named in `SHARED` are None unless given: the experiment's value.
  """
  return section(_find(kind, name, f'config.{kind}'), name=name, **kwargs)


def section(function, /, **kwargs):
  """A config section with the keyword defaults of `function`, updated by `kwargs`."""
  fields = {}
  for field, parameter in schema.fields(function).items():
    if field in SHARED and parameter.default is inspect.Parameter.empty:
      fields[field] = ml_collections.config_dict.placeholder(float)
    elif parameter.default is None:
      fields[field] = ml_collections.config_dict.placeholder(schema.plain_type(parameter.hint))
    elif parameter.default is not inspect.Parameter.empty:
      fields[field] = parameter.default
  fields.update({name: value for name, value in kwargs.items() if value is not None})
  return ml_collections.ConfigDict(fields)


@dataclasses.dataclass(frozen=True)
class Run:
  """One experiment, built from a checked config: what the stages need.

  Attributes:
    config: the resolved config, plain nested dicts.
    devices: the devices that it runs on.
    test_data: the test split.
    model: the Flax module.
    network: `types.Network`, synchronised over devices.
    method: `types.Method` with its hyper-parameters bound.
    attack: `types.Attack` of the empirical stage, hyper-parameters bound.
    certify: the certifier, hyper-parameters bound, or a `certification.Rule`; None without noise.
    sigma: noise of the smoothed classifier that is certified; 0: not smoothed.
    attacked_sigma: noise of the classifier that is attacked, the same one unless
      config.evaluation.sigma says otherwise.
    data, extra, train, evaluation, certify_images, verify: the sections as NamedTuples.
  """

  config: dict[str, Any]
  devices: list
  test_data: Any
  model: Any
  network: Network
  method: Method
  attack: Attack
  certify: Any
  sigma: float
  attacked_sigma: float
  data: DataSettings
  extra: ExtraSettings
  train: TrainSettings
  evaluation: EvaluationSettings
  certify_images: ImagesSettings
  verify: VerifySettings

  @property
  def trainable(self):
    """Whether the model has parameters of its own; a function that was brought has none."""
    return not getattr(self.model, 'takes_pixels', False)

  @property
  def training_noise(self):
    """Standard deviation of the noise that the method trains with, pixel units; 0 without any."""
    return self.method.keywords.get('sigma', 0.)

  def summary(self):
    """What is about to run, on one line."""
    config = self.config
    return (f'{config["model"]["name"]} on {self.data.name}, {config["method"]["name"]} training, '
            f'epsilon {config["epsilon"]:.4g}, sigma {self.sigma:.4g}, seed {config["seed"]}, '
            f'{len(self.devices)} x {self.devices[0].device_kind}')

  def key(self, use):
    """The root key of one use of randomness: the seed decides it, and nothing else."""
    return keys.fold_in(keys.root(self.config['seed']),
                        ('init', 'train', 'evaluate', 'attack', 'certify').index(use))

  @functools.cached_property
  def train_data(self):
    """The training split, with the extra examples."""
    return self.extra.mix(self.data, self.data.load('train'))

  @functools.cached_property
  def examples(self):
    """What tells the training examples, and their order, from others: plain JSON.

    Of a method with a memory, by the labels of all of them. Else of extra examples alone, by their
    labels, as a file of pseudo-labels may have been written again; None without any.
    """
    remembers = self.config['method']['name'] in methods.MEMORY
    if not remembers and not self.extra.share:
      return None
    dataset = self.train_data
    first = 0 if remembers else dataset.num_examples - dataset.mixture.num_examples
    labels = np.asarray(dataset.labels[first:], np.int32)
    return {'dataset': self.data.name if remembers else self.extra.name, 'num': len(labels),
            'labels_sha256': hashlib.sha256(labels.tobytes()).hexdigest()}

  def memory(self):
    """{name: [num_train]}, what the method remembers of each training example, at first."""
    first = methods.MEMORY.get(self.config['method']['name'], {})
    return {name: np.full(self.train_data.num_examples, value, np.float32)
            for name, value in first.items()}

  def train_tangents(self):
    """The tangent directions of the training images by index; None where none are needed."""
    if self.config['method']['name'] not in methods.NEED_TANGENTS:
      return None
    return data.load_tangents(
        self.train_data, self.train.batch_size, num_directions=self.data.tangents,
        num_neighbors=self.data.tangent_neighbors, file=self.data.tangents_file)

  @property
  def steps_per_epoch(self):
    """Optimiser steps of one epoch."""
    return data.steps_per_epoch(self.train_data, self.train.batch_size)

  @property
  def num_steps(self):
    """Steps of the whole training: num_epochs' worth, or fewer by config.train.num_steps."""
    whole = max(round(self.train.num_epochs * self.steps_per_epoch), 1)
    return min(self.train.num_steps or whole, whole)

  def learning_rate(self):
    """The optax schedule, step -> learning rate."""
    return _bind('schedule', self.config)(
        steps_per_epoch=self.steps_per_epoch, num_epochs=self.train.num_epochs)

  def optimizer(self):
    """The optax transformation."""
    return _bind('optimizer', self.config)(self.learning_rate())


def saved_config(workdir):
  """The ConfigDict of a workdir, typed as when it was made, so that overrides are checked.

  Raises:
    UserError: there is no config.json that can be read.
  """
  path = Path(workdir) / 'config.json'
  try:
    return _typed(json.loads(path.read_text(encoding='utf-8')))
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f'{path} cannot be read ({type(error).__name__}: {error}); the config.json of '
                    'a run is allowed') from error


def _typed(saved):
  """The ConfigDict of saved nested dicts; fields that they do not have yet get their defaults."""
  top = {name: saved[name] for name in Experiment._fields if name in saved}
  config = section(Experiment, **top)
  for name, settings in SECTIONS.items():
    # A section that is younger than the config is at its defaults.
    config[name] = section(settings, **_tuples(saved.get(name, {})))
  for kind in TABLES:
    config[kind] = _saved_component(kind, saved[kind])
  return config


def _saved_component(kind, saved):
  nested = {name: _saved_component('attack', value)
            for name, value in saved.items() if isinstance(value, dict)}
  values = {name: value for name, value in saved.items() if value is not None}
  return component(kind, **_tuples({**values, **nested}))


def resolve(config):
  """The config as checked, plain nested dicts, with JSON's types.

  Raises:
    UserError: a field that is missing, unknown, of the wrong type or out of range.
  """
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f'--config gives {config!r}; a get_config() that returns a ConfigDict is '
                    'allowed')
  config = json.loads(json.dumps(config.to_dict()))
  top = schema.fields(Experiment)
  schema.check_names('config', config, [*top, *SECTIONS, *TABLES])
  for name, field in top.items():
    schema.check_value(f'config.{name}', config[name], field.hint)
  for field, settings in SECTIONS.items():
    _check_section(f'config.{field}', config[field], settings)
  for kind in TABLES:
    _check_component(f'config.{kind}', kind, config[kind])
  return config


def build(config, devices=None):
  """Everything that the stages need, from a resolved config.

  Args:
    config: nested dicts from `resolve`.
    devices: list of devices; all local ones if None.

  Raises:
    UserError: a dataset that is not there, or a batch that does not divide by the devices.
  """
  devices = devices or jax.local_devices()
  settings = {name: kind(**_tuples(config[name])) for name, kind in SECTIONS.items()}
  train = settings['train']
  parallel.check_divisible('config.train.batch_size', train.batch_size, devices,
                           train.accumulation)
  parallel.check_divisible('config.train.eval_batch_size', train.eval_batch_size, devices)
  parallel.check_divisible('config.evaluation.batch_size', settings['evaluation'].batch_size,
                           devices)
  test_data = settings['data'].load('test')
  model = models.create(config['model']['name'], test_data.num_classes,
                        **_without_name(config['model']))
  sigma, own = smoothing_sigma(config), settings['evaluation'].sigma
  attacked_sigma = sigma if own is None else own
  run = Run(
      config=config, devices=devices, test_data=test_data, model=model,
      network=models.network(model, mean=test_data.mean, std=test_data.std,
                             axis_name=parallel.AXIS),
      method=_bind('method', config),
      attack=_bind_section('attack', config['attack'],
                           {**_shared(config), 'sigma': attacked_sigma}),
      certify=certifier(config) if sigma > 0 else None, sigma=sigma,
      attacked_sigma=attacked_sigma, **settings)
  _check_combinations(run)
  return run


def _check_combinations(run):
  """Raises UserError for values that only together are not available, before hours are spent."""
  if not run.trainable:
    function = run.model.function
    models.external.check(
        models.external.load(function), run.test_data.image_shape, run.test_data.num_classes,
        target=f'config.model.function is {function!r}, which')
  if run.config['new_head'] and (run.config['weights'] is None or not run.trainable):
    raise UserError('config.new_head is True without config.weights; False, or weights whose last '
                    'layer is to be initialised anew, are allowed')
  if run.extra.share and not run.extra.name:
    raise UserError(f'config.extra.share is {run.extra.share} without config.extra.name; a source, '
                    'or 0, is allowed')
  if run.train.tensorboard:
    _check_tensorboard()
  if run.config['checkpoint'] == 'best' and not run.train.keep_best:
    raise UserError("config.checkpoint is 'best'; 'last', or config.train.keep_best=True, is "
                    'allowed')
  if not run.evaluation.epsilons:
    raise UserError('config.evaluation.epsilons is (); one radius at least is allowed')
  method = run.config['method']
  if method['name'] in methods.NEED_TANGENTS:
    _check_tangents(run)
  if 'attack' in method:
    _check_inner_attack(method['name'], method['attack'])
  inner = run.method.keywords.get('attack')
  attacks_made = []
  if run.config['attack']['name'] not in attacks.ON_HOST:
    attacks_made.append(('config.attack', run.attack,
                         run.evaluation.num_noise if run.attacked_sigma > 0 else None))
  if inner is not None:
    attacks_made.append(('config.method.attack', inner, run.method.keywords.get('num_noise')))
  for name, field in schema.fields(run.method.func).items():
    if name in SHARED and run.config['method'].get(name) is None:
      schema.check_value(
          f'config.{name}, which the method {run.config["method"]["name"]!r} takes,',
          run.method.keywords[name], field.hint)
  images = jax.ShapeDtypeStruct((1, *run.test_data.image_shape), jnp.float32)
  num_classes = run.test_data.num_classes
  logits_fn = lambda x: jnp.zeros((len(x), num_classes)) + x.mean()
  for path, attack, num_noise in attacks_made:
    noise = num_noise and jax.ShapeDtypeStruct((num_noise, *images.shape), jnp.float32)
    try:
      jax.eval_shape(
          lambda x, n, attack=attack: attack(keys.root(0), logits_fn, x, jnp.zeros(1, jnp.int32),
                                             epsilon=0.1, noise=n), images, noise)
    except ValueError as error:
      raise UserError(f'{path}: {error}') from error
  if run.certify is not None:
    draws = (run.certify.most_draws if isinstance(run.certify, certification.Rule)
             else run.certify.keywords['n'])
    try:
      certification.check_draws(run.certify_images.images_per_call, 0, draws,
                                run.config['certify']['batch_size'])
      settings = run.config['certify']
      sources.make(settings['noise'], run.sigma)
      sources.check_alpha(settings['alpha'], settings['noise'], sigma=run.sigma, n=settings['n'],
                          pixels=math.prod(run.test_data.image_shape))
    except ValueError as error:
      raise UserError(f'config.certify and config.certify_images: {error}') from error


def _check_inner_attack(method, attack):
  name, loss = attack['name'], methods.ATTACK_LOSS.get(method)
  if name in attacks.ON_HOST:
    allowed = ', '.join(other for other in attacks.ATTACKS if other not in attacks.ON_HOST)
    raise UserError(f'config.method.attack.name is {name!r}, which runs on the host, where no '
                    f'training step is; one of {allowed} is allowed')
  if name == 'none' and method in methods.MEMORY:
    raise UserError(f"config.method.attack.name is 'none', and config.method.name {method!r} "
                    'learns what an attack of each radius does; another attack is allowed')
  if loss is not None and attack.get('loss') != loss:
    field = 'loss' if 'loss' in attack else 'name'
    allowed = repr(loss) if 'loss' in attack else f"'pgd' with loss {loss!r}"
    raise UserError(f'config.method.attack.{field} is {attack[field]!r}, and config.method.name '
                    f'{method!r} maximises {loss!r}; {allowed} is allowed')


def _check_tangents(run):
  name = run.config['method']['name']
  if not run.data.tangents:
    raise UserError(f'config.data.tangents is 0, and config.method.name {name!r} needs tangent '
                    'directions; 1 or more is allowed')
  if run.data.augment != 'none':
    raise UserError(f'config.data.augment is {run.data.augment!r}, and config.method.name {name!r} '
                    "needs tangent directions, which are those of the images as they are; 'none' "
                    'is allowed')
  if run.extra.share:
    raise UserError(f'config.extra.share is {run.extra.share}, and config.method.name {name!r} '
                    'needs tangent directions, which extra examples do not have; 0 is allowed')


def _check_tensorboard():
  if importlib.util.find_spec('tensorboardX') is None:
    raise UserError('config.train.tensorboard is True, which needs tensorboardX: pip install -e '
                    "'.[tensorboard]'")


def batch_sizes(config):
  """Rows of the batches that are split over devices, those of training for one of its parts."""
  train = config['train']
  return [max(train['batch_size'] // train['accumulation'], 1), train['eval_batch_size'],
          config['evaluation']['batch_size']]


def smoothing_sigma(config):
  """The noise of the classifier that is certified: config.certify.sigma, or sigma."""
  own = config['certify']['sigma']
  return config['sigma'] if own is None else own


def certifier(config):
  """The certifier, hyper-parameters bound; of one that stops by itself, its `certification.Rule`.

  Raises:
    UserError: values that together are not available.
  """
  bound = _bind('certify', config)
  if config['certify']['name'] not in certification.RULES:
    return bound
  try:
    return bound()
  except ValueError as error:
    raise UserError(f'config.certify.{error}') from error


def changed_fields(saved, config, stage):
  """The fields that decide the results of `stage` and differ: ['name: saved, now', ...].

  A field that an older version did not have counts as at its default.
  """
  old, new = _flat(json.loads(json.dumps(_typed(saved).to_dict()))), _flat(config)
  # A TFDS dataset is the same wherever it is; of a folder of images the place is the name.
  free = set(FREE_FIELDS) - ({'data.data_dir'} if config['data']['name'] == 'folder' else set())
  return [f'config.{name}: {old.get(name)!r} there, {new.get(name)!r} now'
          for name in sorted({*old, *new})
          if any(f'{name}.'.startswith(f'{field}.') for field in STAGE_FIELDS[stage])
          and name not in free and old.get(name) != new.get(name)]


def _find(kind, name, path):
  if name not in TABLES[kind]:
    near = difflib.get_close_matches(str(name), TABLES[kind], 1)
    hint = f'; did you mean {near[0]}?' if near else ''
    raise UserError(f'{path}.name is {name!r}; one of {", ".join(TABLES[kind])} is allowed{hint}')
  return TABLES[kind][name]


def _bind(kind, config):
  """partial(function, **section), nested attacks bound and shared fields filled in."""
  return _bind_section(kind, config[kind], _shared(config))


def _shared(config):
  return {name: config[name] for name in SHARED}


def _bind_section(kind, values, shared):
  function = TABLES[kind][values['name']]
  shared = {name: shared[name] if values.get(name) is None else values[name] for name in shared}
  kwargs = {}
  for name, field in schema.fields(function).items():
    value = values.get(name)
    if field.hint == Attack:
      value = _bind_section('attack', value, shared)
    elif name in SHARED:
      value = shared[name]
    kwargs[name] = value
  return functools.partial(function, **_tuples(kwargs))


def _without_name(values):
  return {name: value for name, value in _tuples(values).items() if name != 'name'}


def _tuples(values):
  """JSON has lists where functions and configs have tuples."""
  return {name: tuple(value) if isinstance(value, list) else value
          for name, value in values.items()}


def _check_component(path, kind, values):
  if not isinstance(values, dict) or 'name' not in values:
    raise UserError(f'{path} is {values!r}; a name and keyword arguments are allowed')
  function = _find(kind, values['name'], path)
  _check_section(path, _without_name(values), function)


def _check_section(path, values, function):
  fields = schema.fields(function)
  schema.check_names(path, values, fields)
  for name, field in fields.items():
    if name in SHARED and values[name] is None:
      continue
    if field.hint == Attack:
      _check_component(f'{path}.{name}', 'attack', values[name])
    else:
      schema.check_value(f'{path}.{name}', values[name], field.hint)


def _flat(tree, prefix=''):
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat.update(_flat(value, f'{prefix}{name}.'))
    else:
      flat[f'{prefix}{name}'] = value
  return flat
