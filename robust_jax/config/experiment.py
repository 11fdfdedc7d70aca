"""From a resolved config to a run: every function of it with its hyper-parameters bound."""

import dataclasses
import functools
import hashlib
from typing import Any

import jax
import numpy as np

from robust_jax import data, keys, models
from robust_jax.config import schema, validate
from robust_jax.config.configuration import (
  SECTIONS,
  SHARED,
  TABLES,
  DataSettings,
  EvaluationSettings,
  ExtraSettings,
  ImagesSettings,
  LabelSettings,
  TrainSettings,
  VerifySettings,
  with_tuples,
)
from robust_jax.devices import parallel
from robust_jax.devices.choose import check_divisible
from robust_jax.errors import UserError
from robust_jax.training import methods
from robust_jax.types import Attack, Method, Network


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
    certify: `certification.Rule`; None without noise.
    sigma: noise of the smoothed classifier that is certified; 0: not smoothed.
    attacked_sigma: noise of the classifier that is attacked, the same one unless
      config.evaluation.sigma says otherwise.
    data, extra, train, evaluation, certify_images, verify, label: the sections as NamedTuples.
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
  label: LabelSettings

  @property
  def trainable(self):
    """Whether the model has parameters of its own; a function that was brought has none."""
    return not getattr(self.model, 'takes_pixels', False)

  @property
  def needs(self):
    """`methods.Needs` of the method."""
    return methods.needs(self.config['method']['name'])

  @property
  def training_noise(self):
    """Standard deviation of the noise that the method trains with, pixel units; 0 without any."""
    return self.method.keywords.get('sigma', 0.)

  def summary(self):
    """What is about to run, on one line."""
    config, values = self.config, self.method.keywords
    phrases = [f'{config["model"]["name"]} on {self.data.name}']
    if self.trainable:
      attack = config['method'].get('attack') or {}
      by = f' by {attack["norm"]} {attack["name"]}' if 'norm' in attack else ''
      taken = [f'{name} {values[name]:.4g}' for name in SHARED if name in values]
      phrases.append(f'{config["method"]["name"]} training{by}'
                     + (f' ({", ".join(taken)})' if taken else ''))
      if self.extra.share:
        split = '' if self.extra.name.endswith('.npz') else f' {config["extra"]["split"]}'
        phrases.append(f'{100 * self.extra.share:.4g}% of each batch from {self.extra.name}{split}')
    if self.sigma:
      phrases.append(f'smoothed by sigma {self.sigma:.4g}')
    return ', '.join([*phrases, f'seed {config["seed"]}',
                      f'{len(self.devices)} x {self.devices[0].device_kind}'])

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
    remembers = bool(self.needs.memory)
    if not remembers and not self.extra.share:
      return None
    dataset = self.train_data
    first = 0 if remembers else dataset.num_examples - dataset.mixture.num_examples
    labels = np.asarray(dataset.labels[first:], np.int32)
    return {'dataset': self.data.name if remembers else self.extra.name, 'num': len(labels),
            'labels_sha256': hashlib.sha256(labels.tobytes()).hexdigest()}

  def memory(self):
    """{name: [num_train]}, what the method remembers of each training example, at first."""
    return {name: np.full(self.train_data.num_examples, value, np.float32)
            for name, value in self.needs.memory.items()}

  def train_tangents(self):
    """The tangent directions of the training images by index; None where none are needed."""
    if not self.needs.tangents:
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


def build(config, devices=None):
  """Everything that the stages need, from a resolved config.

  Args:
    config: nested dicts from `configuration.resolve`.
    devices: list of devices; all local ones if None.

  Raises:
    UserError: a dataset that is not there, or a batch that does not divide by the devices.
  """
  devices = devices or jax.local_devices()
  settings = {name: kind(**with_tuples(config[name])) for name, kind in SECTIONS.items()}
  train = settings['train']
  check_divisible('config.train.batch_size', train.batch_size, devices,
                           train.accumulation)
  check_divisible('config.train.eval_batch_size', train.eval_batch_size, devices)
  check_divisible('config.evaluation.batch_size', settings['evaluation'].batch_size,
                           devices)
  test_data = settings['data'].load('test')
  data.take(test_data, [0])  # Refuses a split without labels, or of images of other sizes.
  model = _bind('model', config)(test_data.num_classes)
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
  validate.check(run)
  return run


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
  """The `certification.Rule` of config.certify.

  Raises:
    UserError: values that cannot be together.
  """
  try:
    return _bind('certify', config)()
  except ValueError as error:
    raise UserError(f'config.certify.{error}') from error


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
  return functools.partial(function, **with_tuples(kwargs))
