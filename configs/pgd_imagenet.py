r"""Adversarial training on ImageNet, linf 4/255: ResNet-50, PGD-3 with steps of 2/3 epsilon.

  python -m launch --config=configs/pgd_imagenet.py --workdir=runs/pgd_imagenet \
      --config.data.data_dir=DIR

DIR as in smoothadv_imagenet. The attack is that of Salman et al. 2020 (Do adversarially robust
ImageNet models transfer better?), whose ResNet-50 has 64.0% clean accuracy and 35.0% under
AutoAttack at 4/255 (RobustBench, 5,000 images); batch and schedule are the usual ones of 90 epochs,
256 images, learning rate 0.1. Made for several accelerators; nobody has trained it to the end with
this code.
"""

from configs import smoothadv_imagenet
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_imagenet.get_config()
  config.epsilon = 4 / 255
  config.sigma = 0.
  config.method = component(
      'method', 'adversarial',
      attack=component('attack', 'pgd', norm='linf', num_steps=3, step_ratio=2.))
  config.attack = component('attack', 'pgd', norm='linf', num_steps=50, step_ratio=2.5,
                            random_start=True)
  config.evaluation.update(epsilons=(1 / 255, 2 / 255, 4 / 255, 8 / 255), stride=10,
                           batch_size=128)
  return config
