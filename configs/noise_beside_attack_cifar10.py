r"""Noise beside the attack of the base classifier, on CIFAR-10: the first of four orders.

  python -m launch --config=configs/noise_beside_attack_cifar10.py \
      --workdir=runs/noise_beside_attack_cifar10

The base classifier is attacked at x; x' without noise and x + n without attack have half of the
loss each. All else as attack_then_noise_cifar10.
"""

from configs import attack_then_noise_cifar10


def get_config():
  config = attack_then_noise_cifar10.get_config()
  config.method.order = 'beside'
  return config
