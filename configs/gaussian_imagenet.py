r"""Gaussian augmentation on ImageNet (Cohen et al. 2019): ResNet-50, sigma 0.5, 90 epochs.

  python -m launch --config=configs/gaussian_imagenet.py --workdir=runs/gaussian_imagenet \
      --config.data.data_dir=DIR

DIR as in smoothadv_imagenet. Published at sigma 0.5, every 100th image (500): ACR 0.733; certified
accuracy 57.2/45.8/37.2/28.6% at radius 0/0.5/1.0/1.5; 137-150 s an image for a certificate on one
GPU of 2019. Made for several accelerators; nobody has trained it to the end with this code.
"""

from configs import smoothadv_imagenet
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_imagenet.get_config()
  config.epsilon = 0.
  config.train.batch_size = 400
  config.method = component('method', 'gaussian')
  return config
