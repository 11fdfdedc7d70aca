"""Adversarial training on CIFAR-10, linf 8/255: WRN-28-10 by the protocol of Rice et al. 2020.

  python -m launch --config=configs/pgd_wrn_cifar10.py --workdir=runs/pgd_wrn_cifar10

As pgd_preact_cifar10, with a wider network. Published by the authors for WRN-34-20, at the best
epoch: 85.3% clean accuracy, 53.4% under AutoAttack (RobustBench).
"""

from configs import pgd_preact_cifar10
from robust_jax.config.configuration import component


def get_config():
  config = pgd_preact_cifar10.get_config()
  config.model = component('model', 'wide_resnet', depth=28, width=10)
  return config
