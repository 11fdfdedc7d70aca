"""Adversarial training on scikit-learn's 8x8 digits, linf 0.1: a minute on a laptop.

  python -m launch --config=configs/pgd_digits.py --workdir=runs/pgd_digits
"""

from configs import smoothadv_digits
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_digits.get_config()
  config.epsilon = 0.1
  config.sigma = 0.
  config.train.update(num_epochs=40., eval_every_epochs=4.)
  attack = dict(norm='linf', num_steps=10, step_ratio=2., random_start=True)
  config.method = component('method', 'adversarial', attack=component('attack', 'pgd', **attack))
  config.attack = component('attack', 'pgd', norm='linf', num_steps=20, random_start=True)
  config.evaluation.update(stride=1, epsilons=(0.05, 0.1, 0.15, 0.2))
  return config
