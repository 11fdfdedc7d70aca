r"""SmoothAdv on ImageNet with 2 steps of DDN (Salman et al. 2019): ResNet-50, sigma 0.5.

  python -m launch --config=configs/smoothadv_ddn_imagenet.py \
      --workdir=runs/smoothadv_ddn_imagenet --config.data.data_dir=DIR

As smoothadv_imagenet, which is the protocol of one PGD step and says what DIR holds, but for the
attack and epsilon 512/256. One step of DDN would test the image itself and no perturbation.

The authors' log at sigma 0.5, every 100th image (427 of them): ACR 0.805; certified accuracy
57.6/49.2/42.2/33.7% at radius 0/0.5/1.0/1.5; with epsilon 255/256 ACR 0.772, with 1024/256 0.795.
Made for several accelerators; nobody has trained it to the end with this code.
"""

from configs import smoothadv_imagenet
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_imagenet.get_config()
  config.epsilon = 512 / 256
  # As the authors: the sphere begins at the warmed-up epsilon. Their own rounding is 'nearest',
  # whose perturbations may be longer than epsilon.
  config.method.attack = component('attack', 'ddn', num_steps=2, init_norm=0., gamma=0.05)
  return config
