"""Consistency regularisation on MNIST: the LeNet protocol of its authors (90 epochs).

  python -m launch --config=configs/consistency_mnist.py --workdir=runs/consistency_mnist

Published at sigma 0.5, 10,000 images, n=100,000: ACR 1.655; certified accuracy 99.2/95.8/92.9/
78.3% at radius 0/0.75/1.0/1.5 (2 draws, lambda 5, eta 0.5). At sigma 0.25 lambda is 10: ACR 0.928;
at sigma 1 it is 5: ACR 1.738.
"""

from configs import gaussian_mnist
from robust_jax.config.configuration import component


def get_config():
  config = gaussian_mnist.get_config()
  config.method = component('method', 'consistency', num_noise=2, weight=5., eta=0.5,
                            attack=component('attack', 'none'))
  return config
