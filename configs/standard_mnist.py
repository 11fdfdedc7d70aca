"""Ordinary training on MNIST: the baseline that every small perturbation fools.

  python -m launch --config=configs/standard_mnist.py --workdir=runs/standard_mnist
"""

from configs import smoothadv_mnist
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_mnist.get_config()
  config.epsilon = 0.
  config.sigma = 0.
  config.method = component('method', 'standard')
  config.evaluation.update(stride=10, batch_size=256)
  return config
