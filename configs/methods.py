r"""All methods on digits, judged alike, 3 seeds: --sweep.

  python -m launch --config=configs/methods.py --sweep --workdir=runs/methods

makes the table of training methods, with each experiment of digits.py (see docs/methods.md).
--config=configs/methods.py:trades,vat has these rows alone, and :seeds=5 or :trades,vat,seeds=5
another number of seeds. Without --sweep it is a single run of the first row.

Epochs are equal; model, data, method, optimiser and schedule are the experiment's own. The network
itself is attacked, without noise; certified is its smoothed version, with the same noise whatever
it was trained with.
"""

from configs import base, digits
from configs.base import attack, certify
from robust_jax.config import sections
from robust_jax.errors import UserError


def get_config(rows=''):
  """The first of the rows under the settings that all of them share."""
  config = digits.get_config(_parse(rows)[0][0])
  config.train.update(num_epochs=20., num_steps=0, eval_every_epochs=5., log_every=23)
  config.attack = attack('pgd', norm='l2', num_steps=20, random_start=True)
  config.evaluation = sections.section(
      sections.EvaluationSettings, sigma=0., epsilons=(0.25, 0.5), stride=1, gallery=0)
  # The largest radius that 1,000 draws can certify is 0.616.
  config.certify = certify('fixed', sigma=0.25, n=1000)
  config.certify_images = sections.section(sections.ImagesSettings)
  return config


def sweep(rows=''):
  """Each experiment, at each point of its own sweep but for seeds, with each seed."""
  names, num_seeds = _parse(rows)
  points = []
  for name in names:
    for point in digits.sweep(name) or [{}]:
      point = {'config': f'configs/methods.py:{name}', **point}
      seeds = [{**point, 'seed': seed} for seed in range(num_seeds)]
      points += [each for each in seeds if each not in points]
  return points


def _parse(rows):
  """'trades,vat,seeds=5' as (['trades', 'vat'], 5)."""
  words = [word for word in rows.split(',') if word]
  names = [word for word in words if not word.startswith('seeds=')]
  seeds = [word.removeprefix('seeds=') for word in words if word not in names] or ['3']
  if not seeds[-1].isdecimal() or int(seeds[-1]) < 1:
    raise UserError(f'configs/methods.py: seeds must be at least 1, got {seeds[-1]!r}')
  return list(dict.fromkeys(names)) or [*base.experiments(vars(digits))], int(seeds[-1])
