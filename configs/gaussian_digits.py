"""Gaussian augmentation (Cohen et al. 2019) on scikit-learn's 8x8 digits: a minute on a laptop.

  python -m launch --config=configs/gaussian_digits.py --workdir=runs/gaussian_digits

As smoothadv_digits without its attack.
"""

from configs import smoothadv_digits
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_digits.get_config()
  config.epsilon = 0.
  config.method = component('method', 'gaussian')
  return config
