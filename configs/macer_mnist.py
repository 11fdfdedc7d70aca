"""MACER on MNIST, the LeNet protocol of the Consistency authors (90 epochs).

  python -m launch --config=configs/macer_mnist.py --workdir=runs/macer_mnist

Published at sigma 0.5, 10,000 images, n=100,000: ACR 1.590 (16 draws, beta 16, gamma 8, lambda 16,
from the 32nd epoch on). At sigma 0.25, lambda 16: ACR 0.920; at sigma 1, lambda 6: 1.595.
"""

from configs import gaussian_mnist
from robust_jax.config.configuration import component


def get_config():
  config = gaussian_mnist.get_config()
  config.method = component('method', 'macer', num_noise=16, weight=16., beta=16., gamma=8.,
                            start_epoch=31)
  return config
