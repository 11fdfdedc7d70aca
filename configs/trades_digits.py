"""TRADES on scikit-learn's 8x8 digits, linf 0.1: a minute on a laptop.

  python -m launch --config=configs/trades_digits.py --workdir=runs/trades_digits
"""

from configs import pgd_digits
from robust_jax.config.configuration import component


def get_config():
  config = pgd_digits.get_config()
  config.method = component(
      'method', 'trades', beta=6.,
      attack=component('attack', 'pgd', norm='linf', loss='kl', num_steps=10, step_ratio=2.5))
  return config
