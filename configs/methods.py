r"""A row of the table of methods (an experiment on digits).

  python -m launch.methods --workdir=runs/methods

makes the table of all of them (see docs/methods.md). One run of it:

  python -m launch --config=configs/methods.py:trades --workdir=runs/trades

Epochs are equal; model, data, method, optimiser and schedule are the experiment's own. The network
itself is attacked, without noise; certified is its smoothed version, with the same noise whatever
it was trained with.
"""

from configs import digits
from configs.base import attack, certify
from robust_jax.config import sections


def get_config(name='smoothadv'):
  """The experiment `name` of digits.py under the settings that all rows share."""
  config = digits.get_config(name)
  config.train.update(num_epochs=20., num_steps=0, eval_every_epochs=5., log_every=23)
  config.attack = attack('pgd', norm='l2', num_steps=20, random_start=True)
  config.evaluation = sections.section(
      sections.EvaluationSettings, sigma=0., epsilons=(0.25, 0.5), stride=1, gallery=0)
  # The largest radius that 1,000 draws can certify is 0.616.
  config.certify = certify('fixed', sigma=0.25, n=1000)
  config.certify_images = sections.section(sections.ImagesSettings)
  return config
