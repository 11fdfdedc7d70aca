"""Stability training on scikit-learn's 8x8 digits: a minute on a laptop.

  python -m launch --config=configs/stability_digits.py --workdir=runs/stability_digits
"""

from configs import smoothadv_digits
from robust_jax.experiment import component


def get_config():
  config = smoothadv_digits.get_config()
  config.epsilon = 0.
  config.method = component('method', 'stability', weight=2.)
  return config
