"""Gaussian augmentation on CIFAR-10 (Cohen et al. 2019): ResNet-110, sigma 0.5, 90 epochs.

  python -m launch --config=configs/gaussian_cifar10.py --workdir=runs/gaussian_cifar10

Published at sigma 0.5, 10,000 images: ACR 0.525; certified accuracy 65.7/42.8/22.0/8.3% at radius
0/0.5/1.0/1.5.
"""

from configs import smoothadv_cifar10
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_cifar10.get_config()
  config.epsilon = 0.
  config.train.update(batch_size=400, num_epochs=90.)
  config.method = component('method', 'gaussian')
  config.schedule = component('schedule', 'step', learning_rate=0.1, boundaries=(30, 60))
  return config
