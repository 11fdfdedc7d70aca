r"""Any digits config at equal epochs, judged alike: a row of the table of training methods.

  python -m launch.methods --workdir=runs/methods

makes the table of all of them (see docs/methods.md). One run of it:

  python -m launch --config=configs/methods.py:trades_digits --workdir=runs/trades

Model, data, method, optimiser and schedule are the config's own. The network itself is attacked,
without noise; certified is its smoothed version, with the same noise whatever it was trained with.
"""

import importlib

from robust_jax.config import configuration
from robust_jax.config.configuration import component


def get_config(name='smoothadv_digits'):
  """The config `name` of this folder under the settings that all rows share."""
  config = importlib.import_module(f'configs.{name}').get_config()
  config.train.update(num_epochs=20., num_steps=0, eval_every_epochs=5., log_every=23)
  config.attack = component('attack', 'pgd', norm='l2', num_steps=20, random_start=True)
  config.evaluation = configuration.section(
      configuration.EvaluationSettings, sigma=0., epsilons=(0.25, 0.5), gallery=0)
  # The largest radius that 1,000 draws can certify is 0.616.
  config.certify = component('certify', 'fixed', sigma=0.25, n=1000)
  config.certify_images = configuration.section(configuration.ImagesSettings)
  return config
