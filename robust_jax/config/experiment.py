"""From a resolved config to a run: its functions with their hyper-parameters bound, and checked."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_jax import attacks, certification, data, keys, models, named, schema, training
from robust_jax.attacks import threat_models
from robust_jax.attacks.autoattack import parts
from robust_jax.certification import integer_noise, noise_sources, rules
from robust_jax.config import lengths
from robust_jax.config.sections import (
    SECTIONS,
    SHARED,
    TABLES,
    AttackImageSettings,
    BoundSettings,
    CheckSettings,
    DataSettings,
    EvaluationSettings,
    ExportSettings,
    ExtraSettings,
    ImagesSettings,
    LabelSettings,
    SandwichSettings,
    TrainSettings,
    VerifySettings,
    find,
    flat,
    with_tuples,
)
from robust_jax.devices import parallel, processes
from robust_jax.devices.choose import check_divisible
from robust_jax.errors import UserError
from robust_jax.training import methods
from robust_jax.types import (
    Attack,
    AttackResult,
    Batch,
    Method,
    MethodOutput,
    Network,
    Progress,
)

# Of randomness, numbered.
_USES = ('init', 'train', 'evaluate', 'attack', 'certify', 'sandwich', 'bound')


@dataclasses.dataclass(frozen=True)
class Run:
  """One experiment, built from a checked config: what the stages need.

  Attributes:
    config: the resolved config, plain nested dicts.
    components: of it the sections with a name, such as 'method', where every epsilon and sigma has
      its value: {kind: {'name': ..., **keyword arguments}}.
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
    data, extra, train, evaluation, certify_images, sandwich, bound, verify, check, label,
      attack_image, export: the sections as NamedTuples; of bound nothing is None.
    shard: (I, N): of the images to be judged this run has every N-th from number I on.
  """

  config: dict[str, Any]
  components: dict[str, dict[str, Any]]
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
  sandwich: SandwichSettings
  bound: BoundSettings
  verify: VerifySettings
  check: CheckSettings
  label: LabelSettings
  attack_image: AttackImageSettings
  export: ExportSettings
  shard: tuple[int, int] = (0, 1)

  @property
  def trainable(self):
    """Whether the model has parameters of its own; a user's function has none."""
    return not isinstance(self.model, models.external.External)

  @property
  def needs(self):
    """`methods.Needs` of the method."""
    name = self.config['method']['name']
    return getattr(find('method', name), 'needs', methods.needs(name))

  @property
  def training_noise(self):
    """Standard deviation of the noise that the method trains with, pixel units; 0 without any."""
    return self.components['method'].get('sigma', 0.)

  @property
  def training_epsilon(self):
    """Radius within which the method attacks or perturbs, pixel units; 0 where it does not."""
    method = self.components['method']
    if method.get('attack', {}).get('name') == 'none':
      return 0.
    return method.get('epsilon', 0.)

  @property
  def training_norm(self):
    """The norm in which the method attacks; None where it names none of ours."""
    method = self.config['method']
    norm = method.get('attack', method).get('norm')
    return norm if norm in threat_models.NORMS else None

  def summary(self, *, trained=True):
    """What is about to run, on one line.

    Args:
      trained: whether the network is one that this run trains or has trained, rather than
        config.weights as they are.
    """
    config, method = self.config, self.components['method']
    phrases = [f'{config["model"]["name"]} on {self.data.name}']
    if self.trainable and not trained:
      phrases.append(f'weights of {config["weights"]}')
    elif self.trainable:
      attack = method.get('attack', {})
      by = f' by {attack["norm"]} {attack["name"]}' if 'norm' in attack else ''
      taken = [f'{name} {method[name]:.4g}' for name in SHARED
               if name in method and (name != 'epsilon' or self.training_epsilon)]
      phrases.append(f'{method["name"]} training{by}'
                     + (f' ({", ".join(taken)})' if taken else ''))
      if self.extra.share:
        phrases.append(f'{100 * self.extra.share:.4g}% of each batch from {self.extra.name} '
                       f'{self.extra.split}')
    if self.sigma:
      phrases.append(f'smoothed by sigma {self.sigma:.4g}')
    several = f' in {processes.count()} processes' if processes.count() > 1 else ''
    return ', '.join([*phrases, f'seed {config["seed"]}',
                      f'{len(self.devices)} x {self.devices[0].device_kind}{several}'])

  def remarks(self, wanted):
    """Lines on what the stages of names `wanted` may not do as meant."""
    lines = lengths.remarks(self, wanted)
    if 'train' in wanted and self.train.num_steps > self.num_steps:
      lines.append(f'config.train.num_steps is {self.train.num_steps}, and '
                   f'config.train.num_epochs={self.train.num_epochs:g} end after {self.num_steps}')
    if 'train' in wanted:
      lines += self._unfilled_batch()
    if 'bound' in wanted and self.sigma:
      lines.append(f'what is bounded is the network itself: the classifier that is smoothed by '
                   f'{self.sigma:g} has the certificates of the certify stage')
    for stage, section in (('attack', 'evaluation'), ('certify', 'certify_images'),
                           ('bound', 'bound')):
      settings, images = getattr(self, section), self.test_data.num_examples
      every = range(0, images, settings.stride)
      chosen = len(every)
      if stage in wanted and (few := self._missed_classes(every, settings.num_images)):
        lines.append(f'the images of config.{section} are of {few} of {self.test_data.num_classes} '
                     f'classes; a larger config.{section}.stride spreads them over the split')
      if stage in wanted and chosen < settings.num_images:
        lines.append(f'config.{section}.num_images is {settings.num_images}, of which there are '
                     f'{chosen}: every image of number 0, {settings.stride}, ... of {images} '
                     f'(config.{section}.stride)')
    return lines

  def _unfilled_batch(self):
    """A line where all training images are fewer than a step takes: its other rows do not count."""
    dataset, rows = self.train_data, self.train.batch_size
    images = dataset.num_examples
    if dataset.mixture:  # The extra images have rows of their own.
      images -= dataset.mixture.num_examples
      rows -= round(dataset.mixture.share * rows)
    return [f'config.train.batch_size is {self.train.batch_size}, with room for {rows} training '
            f'images, of which there are {images}: an epoch is one step, and the rows left over '
            'count for nothing'] if images < rows else []

  def _missed_classes(self, every, number):
    """How many classes the first `number` of `every` image are of, if others come behind them.

    None where none do, as far as labels that are in memory say. Folders are sorted by class.
    """
    labels, chosen = self.test_data.labels, every[:number or None]
    if not isinstance(labels, np.ndarray) or len(chosen) < 3 or len(chosen) == len(every):
      return None
    there, found = len(np.unique(labels)), len(np.unique(labels[np.asarray(chosen)]))
    is_sorted = bool(np.all(np.diff(labels) >= 0))
    return found if found < min(there, len(chosen)) and (is_sorted or found == 1) else None

  def key(self, use):
    """The root key of one use of randomness: the seed decides it, and nothing else."""
    return keys.fold_in(keys.root(self.config['seed']),
                        _USES.index(use))

  @functools.cached_property
  def train_data(self):
    """The training split, with the extra examples."""
    return self.extra.mix(self.data, self.data.load('train'))

  @functools.cached_property
  def validation_data(self):
    """What is held out of the training split; None without config.data.validation."""
    return self.data.load('validation') if self.data.validation else None

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

  def train_targets(self):
    """The probabilities of config.data.targets_file; None where none are needed."""
    if not self.needs.targets:
      return None
    return data.load_targets(self.train_data, self.data.targets_file)

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
    return bind('schedule', self.components['schedule'])(
        steps_per_epoch=self.steps_per_epoch, num_epochs=self.train.num_epochs)

  def optimizer(self):
    """The optax transformation."""
    return bind('optimizer', self.components['optimizer'])(self.learning_rate())


def build(config, devices=None, *, images=True):
  """Everything that the stages need, from a resolved config.

  Args:
    config: nested dicts from `sections.resolve`.
    devices: list of devices; all local ones if None.
    images: whether images of the dataset are needed. If not, one whose classes are known without
      its files need not be there.

  Raises:
    UserError: a dataset that is not there, a batch that does not divide by the devices, or fields
      that do not go together.
  """
  devices = devices or jax.local_devices()
  settings = {name: kind(**with_tuples(config[name])) for name, kind in SECTIONS.items()}
  train, evaluation = settings['train'], settings['evaluation']
  settings['bound'] = settings['bound'].complete(lengths.norm_of(config['attack']), evaluation)
  check_divisible('config.train.batch_size', train.batch_size, devices, train.accumulation)
  check_divisible('config.train.eval_batch_size', train.eval_batch_size, devices)
  check_divisible('config.evaluation.batch_size', evaluation.batch_size, devices)
  test_data = None if images else data.without_images(
      **{field: getattr(settings['data'], field)
         for field in ('name', 'image_size', 'channels', 'mean', 'std')})
  if test_data is None:
    test_data = settings['data'].load('test')
    data.take(test_data, [0])  # Refuses a split without labels, or of images of other sizes.
  components = complete(config)
  with _mistakes('config.model', config['model']['name']):
    model = bind('model', components['model'])(test_data.num_classes)
  sigma = smoothing_sigma(config)
  run = Run(
      config=config, components=components, devices=devices, test_data=test_data, model=model,
      network=models.network(model, mean=test_data.mean, std=test_data.std,
                             axis_name=parallel.AXIS),
      method=bind('method', components['method']), attack=bind('attack', components['attack']),
      certify=certifier(config) if sigma > 0 else None, sigma=sigma,
      attacked_sigma=attacked_sigma(config), **settings)
  _check_fields(run)
  lengths.check(run)
  if not run.trainable:
    models.external.check(
        models.external.load(model.function), test_data.image_shape, test_data.num_classes,
        target=f'config.model.function is {model.function!r}, which')
  if ':' in config['model']['name']:
    models.own.check(model, models.network(model), test_data.image_shape, test_data.num_classes,
                     target=config['model']['name'])
  _check_attacks(run)
  if ':' in config['method']['name']:
    _check_method(run)
  if run.certify is not None:
    _check_certify(run)
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


def attacked_sigma(config):
  """The noise of the classifier that is attacked: config.evaluation.sigma, or the certified."""
  own = config['evaluation']['sigma']
  return smoothing_sigma(config) if own is None else own


def certifier(config):
  """The `certification.Rule` of config.certify.

  Raises:
    UserError: values that cannot be together.
  """
  try:
    return bind('certify', complete(config)['certify'])()
  except ValueError as error:
    raise UserError(f'config.certify.{error}') from error


def complete(config):
  """`Run.components`: an epsilon or sigma that a section leaves out is the experiment's.

  The sigma of config.attack is that of the classifier that is attacked. A method's own sigma is
  that of its attack too.
  """
  shared = {name: config[name] for name in SHARED}
  attacked = {**shared, 'sigma': attacked_sigma(config)}
  return {kind: _complete(config[kind], attacked if kind == 'attack' else shared)
          for kind in TABLES}


def _complete(values, shared):
  shared = {name: shared[name] if values.get(name) is None else values[name] for name in SHARED}
  return {name: _complete(value, shared) if isinstance(value, dict) else shared.get(name, value)
          for name, value in values.items()}


def bind(kind, values):
  """partial(function, **keyword arguments) of a section of `Run.components`, attacks bound too."""
  kwargs = {name: bind('attack', value) if isinstance(value, dict) else value
            for name, value in values.items() if name != 'name'}
  return functools.partial(find(kind, values['name']), **with_tuples(kwargs))


def _check_fields(run):
  """Raises UserError where fields of several sections do not go together."""
  fields, method = flat(run.config), run.config['method']
  by = f'for config.method.name {method["name"]!r}'

  def require(holds, field, value):
    if not holds:
      raise UserError(f'config.{field} must be {value}, got {fields[field]!r}')

  require(not run.config['new_head'] or (run.config['weights'] is not None and run.trainable),
          'new_head', 'False without config.weights, whose last layer it initialises anew')
  require(run.config['weights_part'] is None or run.config['weights'] is not None,
          'weights_part', 'None without config.weights')
  require(run.config['checkpoint'] != 'best' or run.train.keep_best,
          'checkpoint', "'last' without config.train.keep_best, which needs config.data.validation")
  require(not run.extra.share or run.extra.name, 'extra.share', '0 without config.extra.name')
  require(not run.train.tensorboard or importlib.util.find_spec('tensorboardX'),
          'train.tensorboard', "False without tensorboardX (pip install -e '.[tensorboard]')")
  require(not run.train.max_loss_jump or run.train.on_bad_loss == 'skip', 'train.max_loss_jump',
          "0 without config.train.on_bad_loss 'skip'")
  require(not 0 < run.train.max_loss_jump <= 1, 'train.max_loss_jump', '0 or more than 1')
  require(not (run.train.awp and run.train.sam), 'train.sam', '0 with config.train.awp')
  require(not run.train.ascent_start_epoch or run.train.awp or run.train.sam,
          'train.ascent_start_epoch', '0 without config.train.awp or config.train.sam')
  if run.train.on_overfitting != 'ignore':
    require(run.training_norm and run.training_epsilon and not run.training_noise,
            'train.on_overfitting', f"'ignore' {by}, unless it attacks in linf, l2 or l1, within a "
            'radius and without noise')
  require(run.evaluation.epsilons, 'evaluation.epsilons', 'one radius or more')
  own, norm = run.config['bound'], lengths.norm_of(run.config['attack'])
  require(own['epsilons'] != [], 'bound.epsilons', 'one radius or more')
  require(own['epsilons'] or run.bound.norm == norm, 'bound.epsilons',
          f'given for config.bound.norm {run.bound.norm!r}, as config.evaluation.epsilons are in '
          f'{norm}')
  require(not run.bound.exact or run.bound.norm in ('linf', 'l1'), 'bound.exact',
          f'False for the norm {run.bound.norm!r}: the exact verifier has linf and l1')
  if run.needs.tangents:
    require(run.data.tangents, 'data.tangents', f'1 or more {by}')
    require(run.data.augment == 'none', 'data.augment',
            f"'none' {by}, whose tangents are those of the images as they are")
    require(not run.extra.share, 'extra.share', f'0 {by}, as extra examples have no tangents')
  if run.needs.targets:
    require(run.data.targets_file, 'data.targets_file', f'a file {by}, which --stages=label of '
            'another network writes')
    require(not run.extra.share, 'extra.share', f'0 {by}, as extra examples have no targets')
  if 'attack' in method:
    attack, loss = method['attack'], run.needs.attack_loss
    inside = [name for name in TABLES['attack'] if name not in {*attacks.ON_HOST, *attacks.SUITES}]
    require(attack['name'] in inside or ':' in attack['name'], 'method.attack.name',
            f'one of {", ".join(inside)}, which run on devices')
    require(attack['name'] != 'none' or not run.needs.memory, 'method.attack.name',
            f'another attack {by}, which learns what an attack of each radius does')
    require(loss != 'kl' or attack.get('target', 'none') == 'none', 'method.attack.target',
            f"'none' {by}, whose loss 'kl' leads away from every class")
    if loss is not None:
      require('loss' in attack, 'method.attack.name', f"'pgd' with loss {loss!r} {by}")
      require(attack['loss'] == loss, 'method.attack.loss', f'{loss!r} {by}')
  for name, field in schema.fields(find('method', method['name'])).items():
    if name in SHARED and method[name] is None:
      schema.check_value(f'config.{name} {by}', run.config[name], field.hint)


def _check_attacks(run):
  """The attacks of config and method say themselves which of their values do not go together."""
  inner, made = run.components['method'].get('attack'), []
  if run.config['attack']['name'] in attacks.SUITES:
    with _mistakes('config.attack', run.config['attack']['name']):
      values = run.config['attack']
      parts(values['version'], values['norm'], run.test_data.num_classes)
      if values['version'] == 'rand':
        raise ValueError("version must not be 'rand': the networks of a run are not stochastic; "
                         'see attacks.autoattack')
      if run.attacked_sigma:
        raise UserError(f'config.evaluation.sigma must be 0 for config.attack.name '
                        f"{values['name']!r}, which attacks the network itself, got "
                        f'{run.attacked_sigma:g}')
      if run.evaluation.transfer_from:
        raise UserError(f'config.evaluation.transfer_from must be None for config.attack.name '
                        f"{values['name']!r}, got {run.evaluation.transfer_from!r}")
  elif run.config['attack']['name'] not in attacks.ON_HOST:
    made.append(('config.attack', run.components['attack'],
                 run.evaluation.num_noise if run.attacked_sigma > 0 else None))
  if inner is not None:
    made.append(('config.method.attack', inner, run.components['method'].get('num_noise')))
  images = jax.ShapeDtypeStruct((1, *run.test_data.image_shape), jnp.float32)
  num_classes = run.test_data.num_classes
  logits_fn = lambda x: jnp.zeros((len(x), num_classes)) + x.mean()
  for path, values, num_noise in made:
    noise = num_noise and jax.ShapeDtypeStruct((num_noise, *images.shape), jnp.float32)
    attack = bind('attack', values)
    with _mistakes(path, values['name']):
      found = jax.eval_shape(
          lambda x, n, attack=attack: attack(keys.root(0), logits_fn, x, jnp.zeros(1, jnp.int32),
                                             epsilon=0.1, noise=n), images, noise)
      if not (isinstance(found, AttackResult) and found.images.shape == images.shape):
        raise ValueError(f'it must return an AttackResult with images of shape {images.shape}, got '
                         f'{found}')


def _check_method(run):
  """Traces a method of the user's own, so that its mistakes are one line."""
  dataset, needs = run.test_data, run.needs
  network = models.network(run.model)
  variables = models.shapes(run.model, dataset.image_shape)
  images = jax.ShapeDtypeStruct((2, *dataset.image_shape), jnp.float32)
  aux = {name: jnp.full(2, value) for name, value in needs.memory.items()}
  if needs.tangents:
    aux['tangents'] = jnp.zeros((2, math.prod(dataset.image_shape), run.data.tangents))
  if needs.targets:
    aux['targets'] = jnp.zeros((2, dataset.num_classes))

  def call(params, batch_stats, images):
    batch = Batch(images, jnp.zeros(2, jnp.int32), jnp.arange(2), jnp.ones(2), aux)
    zero = jnp.zeros((), jnp.int32)
    return run.method(keys.per_example(keys.root(0), 2), network, params, batch_stats, batch,
                      Progress(zero, zero, zero.astype(jnp.float32)))

  with _mistakes('config.method', run.config['method']['name']):
    output = jax.eval_shape(call, variables['params'], variables['batch_stats'], images)
    if not isinstance(output, MethodOutput):
      raise ValueError(f'it must return a MethodOutput, got a {type(output).__name__}')
    training.check_output(output, 2, needs.memory)


@contextlib.contextmanager
def _mistakes(path, name):
  """Turns a ValueError into a UserError, and any error of a function of the user's own."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    if ':' in name:
      raise UserError(f'{path}.name is {name!r}, which raises {named.line(error)}') from error
    if isinstance(error, ValueError):
      raise UserError(f'{path}: {error}') from error
    raise


def _check_certify(run):
  settings = run.components['certify']
  try:
    certification.check_draws(run.certify_images.images_per_call, 0,
                              rules.most_draws(run.certify), run.certify.batch_size)
    noise_sources.make(settings['noise'], run.sigma)
    noise_sources.check_alpha(
        settings['alpha'], settings['noise'], sigma=run.sigma, n=settings['n'],
        pixels=math.prod(run.test_data.image_shape))
  except ValueError as error:
    raise UserError(f'config.certify and config.certify_images: {error}') from error
  if settings['noise'] == 'integer' and run.test_data.images.dtype != np.uint8:
    try:
      integer_noise.check_images(run.test_data.images)
    except ValueError as error:
      raise UserError(f"config.certify.noise must be 'gaussian' for images that are not of 8 bits, "
                      f"got 'integer' and {run.data.name!r}, whose {error}") from error
