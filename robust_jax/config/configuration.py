"""What a config may say: its sections, defaults and checks. The only reader of ConfigDicts.

Every section of a config holds the keyword arguments of one function, found by `name` in a table
where there is a choice. The function's signature is the schema (see `schema`). So a new method,
attack or model is configured, and checked, by the signature it has anyway.
"""

import difflib
import inspect
import json
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import ml_collections

from robust_jax import attacks, certification, data, models, training
from robust_jax.config import schema
from robust_jax.errors import UserError
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
    return data.load(self.name, split, **self.reading, at_once=False)


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


class ExperimentSettings(NamedTuple):
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


class LabelSettings(NamedTuple):
  """config.label: which dataset is labelled, and the file that its labels are written to."""

  name: str | None = None
  split: str = 'train'
  data_dir: str | None = None
  output: str | None = None
  num_noise: Index | None = None


SECTIONS = {'data': DataSettings, 'extra': ExtraSettings, 'train': TrainSettings,
            'evaluation': EvaluationSettings, 'certify_images': ImagesSettings,
            'verify': VerifySettings, 'label': LabelSettings}
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


def resolve(config):
  """The config as checked, plain nested dicts, with JSON's types.

  Raises:
    UserError: a field that is missing, unknown, of the wrong type or out of range.
  """
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f'--config gives {config!r}; a get_config() that returns a ConfigDict is '
                    'allowed')
  config = json.loads(json.dumps(config.to_dict()))
  top = schema.fields(ExperimentSettings)
  schema.check_names('config', config, [*top, *SECTIONS, *TABLES])
  for name, field in top.items():
    schema.check_value(f'config.{name}', config[name], field.hint)
  for field, settings in SECTIONS.items():
    _check_section(f'config.{field}', config[field], settings)
  for kind in TABLES:
    _check_component(f'config.{kind}', kind, config[kind])
  return config


def _check_component(path, kind, values):
  if not isinstance(values, dict) or 'name' not in values:
    raise UserError(f'{path} is {values!r}; a name and keyword arguments are allowed')
  function = _find(kind, values['name'], path)
  values = {name: value for name, value in with_tuples(values).items() if name != 'name'}
  _check_section(path, values, function)


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


def _find(kind, name, path):
  if name not in TABLES[kind]:
    near = difflib.get_close_matches(str(name), TABLES[kind], 1)
    hint = f'; did you mean {near[0]}?' if near else ''
    raise UserError(f'{path}.name is {name!r}; one of {", ".join(TABLES[kind])} is allowed{hint}')
  return TABLES[kind][name]


def saved_config(workdir):
  """The ConfigDict of a workdir, typed as when it was made, so that overrides are checked.

  Raises:
    UserError: there is no config.json that can be read, or it names what there is not any more.
  """
  path = Path(workdir) / 'config.json'
  try:
    return _typed(json.loads(path.read_text(encoding='utf-8')))
  except UserError as error:
    raise UserError(f'{path}: {error}') from None
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f'{path} cannot be read ({type(error).__name__}: {error}); the config.json of '
                    'a run is allowed') from error


def _typed(saved):
  """The ConfigDict of saved nested dicts; fields that they do not have yet get their defaults."""
  top = {name: saved[name] for name in ExperimentSettings._fields if name in saved}
  config = section(ExperimentSettings, **top)
  for name, settings in SECTIONS.items():
    # A section that is younger than the config is at its defaults.
    config[name] = section(settings, **with_tuples(saved.get(name, {})))
  for kind in TABLES:
    config[kind] = _saved_component(kind, saved[kind])
  return config


def _saved_component(kind, saved):
  nested = {name: _saved_component('attack', value)
            for name, value in saved.items() if isinstance(value, dict)}
  values = {name: value for name, value in saved.items() if value is not None}
  return component(kind, **with_tuples({**values, **nested}))


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


def _flat(tree, prefix=''):
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat.update(_flat(value, f'{prefix}{name}.'))
    else:
      flat[f'{prefix}{name}'] = value
  return flat


def with_tuples(values):
  """JSON has lists where functions and configs have tuples."""
  return {name: tuple(value) if isinstance(value, list) else value
          for name, value in values.items()}
