r"""Certifies a network that was trained on CIFAR-10: each radius of a grid, sigma 0.5.

  python -m launch --config=configs/certify_cifar10.py --workdir=runs/certified_cifar10 \
      --config.weights=checkpoint.pth.tar --stages=certify,verify,report

ResNet-110; --config.model.name=resnet20 for another. config.weights, config.sigma and verify are as
in certify_mnist.

Every 20th test image: 500. With the probabilities of the published log of Cohen et al. 2019 at
sigma 0.5 a simulation takes 18,400 draws an image instead of 100,000 and certifies, up to the noise
of the draws, the same images at each radius (differences of at most 0.4 points). They needed 15 s
for 100,000 draws on one GPU of 2019, so 3 s an image, 23 minutes in all.
"""

from configs import smoothadv_cifar10
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_cifar10.get_config()
  config.certify = component(
      'certify', 'sequential', radii=(0.25, 0.5, 0.75, 1., 1.25, 1.5, 1.75), indifference=0.01,
      batch_size=400)
  return config
