r"""Certifies a LeNet that was trained on MNIST: each radius of a grid, sigma 0.5.

  python -m launch --config=configs/certify_mnist.py --workdir=runs/certified_mnist \
      --config.weights=runs/gaussian_mnist --stages=certify,verify,report

config.weights is the workdir of a training by any method, or a file of PyTorch weights, and
config.sigma its noise. An image is drawn for until each radius is decided at alpha 0.001, at most
100,000 times; verify then does it all again (--config.verify.sample=20: for 20 images).

Every 20th test image: 500. A LeNet trained by SmoothAdv took 17,000 draws an image instead of
100,000, and two seconds of a CPU core. Radius 1.75 as well takes 48,000, for an image that never
changes its class needs 44,900 to show it. --config.certify_images.stride=1 takes all 10,000.
"""

from configs import smoothadv_mnist
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_mnist.get_config()
  config.certify = component(
      'certify', 'sequential', radii=(0.25, 0.5, 0.75, 1., 1.25, 1.5), indifference=0.01)
  config.certify_images.stride = 20
  return config
