"""Gaussian augmentation on MNIST, the LeNet protocol of the Consistency authors (90 epochs).

  python -m launch --config=configs/gaussian_mnist.py --workdir=runs/gaussian_mnist

Published at sigma 0.5, 10,000 images, n=100,000: ACR 1.558; certified accuracy 99.2/94.3/89.8/
67.8% at radius 0/0.75/1.0/1.5.
"""

from configs import smoothadv_mnist
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_mnist.get_config()
  config.epsilon = 0.
  config.method = component('method', 'gaussian')
  return config
