"""MACER on scikit-learn's 8x8 digits: minutes on a laptop.

  python -m launch --config=configs/macer_digits.py --workdir=runs/macer_digits
"""

from configs import smoothadv_digits
from robust_jax.configuration import component


def get_config():
  config = smoothadv_digits.get_config()
  config.epsilon = 0.
  config.method = component('method', 'macer', num_noise=8, weight=4., start_epoch=5)
  return config
