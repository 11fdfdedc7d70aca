"""Consistency regularisation on scikit-learn's 8x8 digits: a minute on a laptop.

  python -m launch --config=configs/consistency_digits.py --workdir=runs/consistency_digits
"""

from configs import smoothadv_digits
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_digits.get_config()
  config.epsilon = 0.
  config.method = component('method', 'consistency', num_noise=2, weight=5., eta=0.5,
                            attack=component('attack', 'none'))
  return config
