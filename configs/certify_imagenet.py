r"""Certifies a ResNet-50 on ImageNet: radius 0.5, 1.0 and 1.5, sigma 0.5.

  python -m launch --config=configs/certify_imagenet.py --workdir=runs/certified_imagenet \
      --config.weights=checkpoint.pth.tar --config.data.data_dir=DIR \
      --stages=certify,verify,report --config.verify.sample=10

DIR as in smoothadv_imagenet; config.weights, config.sigma and verify as in certify_mnist.

Every 100th validation image: 500. With the probabilities of the published log of Cohen et al. 2019
at sigma 0.5 a simulation takes 9,800 draws an image instead of 100,000. They needed 150 s for
100,000 draws on one GPU of 2019, so 15 s an image, two hours in all.
"""

from configs import smoothadv_imagenet
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_imagenet.get_config()
  config.certify = component(
      'certify', 'sequential', radii=(0.5, 1., 1.5), indifference=0.01,
      batch_size=400)
  return config
