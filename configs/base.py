"""What every config file builds on: the defaults of robust_jax/config/sections.py, changed."""

import copy
import inspect
from functools import partial
from pathlib import Path

from robust_jax.config.sections import SECTIONS, ExperimentSettings, component, section
from robust_jax.errors import UserError, suggest

# attack('pgd', num_steps=7): a section by the name of its function, defaults filled in.
model, method, optimizer, schedule, attack, certify = (
    partial(component, kind)
    for kind in ('model', 'method', 'optimizer', 'schedule', 'attack', 'certify'))


def get_config(*protocols, **changes):
  """The defaults with what `protocols` and then `changes` change: {field: value}.

  A dict changes fields of a section; a section, such as attack('pgd'), takes the place of one.
  """
  config = section(ExperimentSettings)
  for name, settings in SECTIONS.items():
    config[name] = section(settings)
  config.model = model('lenet')
  config.method = method('standard')
  config.optimizer = optimizer('sgd', momentum=0.9, weight_decay=1e-4)
  config.schedule = schedule('step', learning_rate=0.01)
  config.attack = attack('pgd', norm='l2', num_steps=20, random_start=False)
  # Cohen et al. 2019: n0=100, n=100,000, alpha=0.001. 'sequential' decides the radii of a grid,
  # 'anytime' any radius, with fewer draws.
  config.certify = certify('fixed')
  for fields in [*protocols, changes]:
    for name, value in fields.items():
      if isinstance(value, dict):
        config[name].update(value)
      else:
        config[name] = copy.deepcopy(value)
  return config


def experiments(scope):
  """{name: function} of the experiments in a config file: its public functions."""
  return {name: value for name, value in scope.items()
          if inspect.isfunction(value) and value.__module__ == scope['__name__']
          and name not in ('get_config', 'sweep') and not name.startswith('_')}


def experiment(scope, name):
  """The config of an experiment of a config file, whose globals() are `scope`."""
  found = experiments(scope)
  if name not in found:
    file = Path(scope['__file__']).name
    raise UserError(f'configs/{file} has no experiment {name!r} (python -m launch --list shows all)'
                    + suggest(name, found))
  return found[name]()
