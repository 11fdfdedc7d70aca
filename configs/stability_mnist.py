"""Stability training on MNIST, the LeNet protocol of the Consistency authors (90 epochs).

  python -m launch --config=configs/stability_mnist.py --workdir=runs/stability_mnist

Published at sigma 0.5, 10,000 images, n=100,000: ACR 1.572 (lambda 2); 0.915 and 1.634 at sigma
0.25 and 1.
"""

from configs import gaussian_mnist
from robust_jax.config.configuration import component


def get_config():
  config = gaussian_mnist.get_config()
  config.method = component('method', 'stability', weight=2.)
  return config
