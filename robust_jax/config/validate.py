"""Values that are not available together, or not here: refused before hours are spent on them."""

import importlib.util
import math

import jax
import jax.numpy as jnp

from robust_jax import attacks, certification, keys, models
from robust_jax.certification import noise_sources, rules
from robust_jax.config import schema
from robust_jax.config.configuration import SHARED
from robust_jax.errors import UserError


def check(run):
  """Raises UserError unless all that an `experiment.Run` is to do can be done."""
  if not run.trainable:
    _check_function(run)
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
  if run.needs.tangents:
    _check_tangents(run)
  if 'attack' in method:
    _check_inner_attack(method['name'], method['attack'], run.needs)
  _check_shared_values(run)
  _check_attacks(run)
  if run.certify is not None:
    _check_certify(run)


def _check_function(run):
  """A model that was brought fits the dataset."""
  function = run.model.function
  models.external.check(
      models.external.load(function), run.test_data.image_shape, run.test_data.num_classes,
      target=f'config.model.function is {function!r}, which')


def _check_tensorboard():
  if importlib.util.find_spec('tensorboardX') is None:
    raise UserError('config.train.tensorboard is True, which needs tensorboardX: pip install -e '
                    "'.[tensorboard]'")


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


def _check_inner_attack(method, attack, needs):
  name, loss = attack['name'], needs.attack_loss
  if name in attacks.ON_HOST:
    allowed = ', '.join(other for other in attacks.ATTACKS if other not in attacks.ON_HOST)
    raise UserError(f'config.method.attack.name is {name!r}, which runs on the host, where no '
                    f'training step is; one of {allowed} is allowed')
  if name == 'none' and needs.memory:
    raise UserError(f"config.method.attack.name is 'none', and config.method.name {method!r} "
                    'learns what an attack of each radius does; another attack is allowed')
  if loss == 'kl' and attack.get('target', 'none') != 'none':
    raise UserError(f'config.method.attack.target is {attack["target"]!r}, and config.method.name '
                    f"{method!r} maximises 'kl', which leads away from every class; 'none' is "
                    'allowed')
  if loss is not None and attack.get('loss') != loss:
    field = 'loss' if 'loss' in attack else 'name'
    allowed = repr(loss) if 'loss' in attack else f"'pgd' with loss {loss!r}"
    raise UserError(f'config.method.attack.{field} is {attack[field]!r}, and config.method.name '
                    f'{method!r} maximises {loss!r}; {allowed} is allowed')


def _check_shared_values(run):
  """The experiment's epsilon and sigma are in the ranges that the method allows."""
  for name, field in schema.fields(run.method.func).items():
    if name in SHARED and run.config['method'].get(name) is None:
      schema.check_value(
          f'config.{name}, which the method {run.config["method"]["name"]!r} takes,',
          run.method.keywords[name], field.hint)


def _check_attacks(run):
  """The attacks of config and method say themselves which of their values do not go together."""
  inner = run.method.keywords.get('attack')
  attacks_made = []
  if run.config['attack']['name'] not in attacks.ON_HOST:
    attacks_made.append(('config.attack', run.attack,
                         run.evaluation.num_noise if run.attacked_sigma > 0 else None))
  if inner is not None:
    attacks_made.append(('config.method.attack', inner, run.method.keywords.get('num_noise')))
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


def _check_certify(run):
  try:
    certification.check_draws(run.certify_images.images_per_call, 0,
                              rules.most_draws(run.certify), run.certify.batch_size)
    settings = run.config['certify']
    noise_sources.make(settings['noise'], run.sigma)
    noise_sources.check_alpha(
        settings['alpha'], settings['noise'], sigma=run.sigma, n=settings['n'],
        pixels=math.prod(run.test_data.image_shape))
  except ValueError as error:
    raise UserError(f'config.certify and config.certify_images: {error}') from error
