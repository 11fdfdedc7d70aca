"""CIFAR-100 by a protocol of CIFAR-10."""

from configs import base, cifar10


def pgd_preact():
  """PGD-10, PreActResNet-18, linf 8/255 (Rice et al. 2020)."""
  config = cifar10.pgd_preact()
  config.data.name = 'cifar100'
  config.data.std = None  # CIFAR-100's own.
  return config


def get_config(name='pgd_preact'):
  return base.experiment(globals(), name)
