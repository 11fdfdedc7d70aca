"""Lengths in a config are in [0, 1] pixel units: none is longer than the box of images allows.

A radius of 8, for 8/255, is a number like any other to the maths: it trains, attacks and certifies.
"""

import math

from robust_jax import inputs
from robust_jax.errors import UserError
from robust_jax.training import methods

# Noise of so many times the range of a pixel; published networks have at most 2.
_LARGEST_SIGMA = 4.
# l2 radii of published networks for images are 3 at most.
_UNUSUAL_L2 = 5.
# Fields of attacks that are lengths in their norm.
_OF_ATTACKS = ('step_size', 'min_step_size', 'init_norm')


def check(run):
  """Raises UserError where a radius, a step or noise of a Run is longer than makes sense.

  In linf the box of images has diameter 1, in l2 sqrt(d), in l1 d, with d pixels and channels.
  Nothing moves further within it. Training has to withstand half of that at most: within more than
  that, every image can be made the same, of pixels 1/2, and no classifier tells them apart.
  """
  for field, value, norm, share in _lengths(run):
    limit = _LARGEST_SIGMA if norm is None else share * inputs.diameter(
        norm, run.test_data.image_shape)
    if value > limit:
      what = 'of noise' if norm is None else f'in {norm}'
      raise UserError(f'config.{field} must be at most {limit:.4g} {what}, as pixels are in '
                      f'[0, 1], got {value:g}{_meant(value, limit)}')


def _beyond_ddn(run):
  """A line where DDN's sphere cannot grow to the largest radius that it is asked for."""
  attack, largest = run.config['attack'], max(run.config['evaluation']['epsilons'])
  if attack['name'] != 'ddn' or not attack['init_norm'] or not attack['gamma']:
    return []
  reach = attack['init_norm'] * (1 + attack['gamma'])**attack['num_steps']
  return [f'config.attack.num_steps={attack["num_steps"]} of ddn, from init_norm '
          f'{attack["init_norm"]:g}, look no farther than {reach:.3g}, and '
          f'config.evaluation.epsilons go to {largest:g}: take more, or init_norm=0'
          ] if reach < largest else []


def trained_radius(run):
  """What training defends against in the norm of the attack stage; None where there is no such."""
  attack = run.config['attack']
  if (not run.trainable or not run.training_epsilon or attack['name'] == 'none'
      or norm_of_method(run.components['method']) != norm_of(attack)):
    return None
  return run.training_epsilon


def _not_evaluated(run):
  """A line where no attack is as long as those that training defends against."""
  epsilon, radii = trained_radius(run), run.config['evaluation']['epsilons']
  if not epsilon or any(math.isclose(epsilon, radius, rel_tol=1e-3) for radius in radii):
    return []
  return [f'training is against epsilon {epsilon:.4g}, which is not among '
          f'config.evaluation.epsilons, {tuple(radii)}']


def remarks(run, wanted):
  """A line for each radius that is possible and yet, in all likelihood, was meant otherwise.

  Args:
    run: a Run.
    wanted: names of the stages that are to run.
  """
  found = []
  if 'attack' in wanted:
    # Of config.weights that are only judged the training is another run's.
    trains = 'train' in wanted or not run.config['weights']
    found = (_not_evaluated(run) if trains else []) + _beyond_ddn(run)
  return found + [f'config.{field} is {value:g} in l2, in units in which pixels are in [0, 1]'
          + _meant(value, _UNUSUAL_L2)
          for field, value, norm, _ in _lengths(run)
          if norm == 'l2' and value >= _UNUSUAL_L2]


def _meant(value, limit):
  return f'; did you mean {value:g}/255 = {value / 255:.3g}?' if 1 <= value <= 255 * limit else ''


def _lengths(run):
  """[(field, value, norm, share of the box that it may be)]; norm None of noise."""
  config, found = run.config, []
  method, attack = config['method'], config['attack']
  if run.trainable:
    norm = norm_of_method(method)
    field = 'epsilon' if method.get('epsilon') is None else 'method.epsilon'
    found.append((field, run.components['method'].get('epsilon', config['epsilon']), norm, 0.5))
    if 'warmup_epsilon' in method:  # IAAT: its gamma is a length too.
      found += [(f'method.{name}', method[name], norm, 0.5) for name in ('warmup_epsilon', 'gamma')]
  found += [('evaluation.epsilons', value, norm_of(attack), 1.)
            for value in config['evaluation']['epsilons']]
  found += [('bound.epsilons', value, run.bound.norm, 1.)
            for value in config['bound']['epsilons'] or ()]
  if config['attack_image']['epsilon'] is not None:
    found.append(('attack_image.epsilon', config['attack_image']['epsilon'], norm_of(attack), 1.))
  if config['export']['epsilon'] is not None:
    found.append(('export.epsilon', config['export']['epsilon'], 'linf', 1.))
  for path, values in (('method.attack', method.get('attack', {})), ('attack', attack)):
    found += [(f'{path}.{name}', values[name], norm_of(values), 1.) for name in _OF_ATTACKS
              if values.get(name) is not None
              # Along the gradient as it is, a factor of it is no length.
              and not ('step_size' in name and values.get('direction') == 'gradient')]
  found += [(field, value, None, 1.) for field, value in (
      ('sigma', config['sigma']), ('method.sigma', method.get('sigma')),
      ('evaluation.sigma', config['evaluation']['sigma']),
      ('certify.sigma', config['certify']['sigma']))
            if value is not None]
  return found


def norm_of_method(method):
  """The norm that a method's section trains for: its attack's, its own, or that which it needs."""
  return methods.needs(method.get('name')).norm or norm_of(method.get('attack', method))


def norm_of(attack):
  """The norm of an attack's section: l2 where there is no other in it, as in VAT and L-BFGS."""
  norm = attack.get('norm')
  return norm if norm in ('linf', 'l2', 'l1') else 'l2'
