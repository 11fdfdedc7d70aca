r"""Noise, then an attack of the base classifier, on CIFAR-10: the third of four orders.

  python -m launch --config=configs/noise_then_attack_cifar10.py \
      --workdir=runs/noise_then_attack_cifar10

The base classifier is attacked at x + n, which is SmoothAdv with one draw. All else as
attack_then_noise_cifar10. The fourth order is SmoothAdv with several draws, at a batch size smaller
by as much: --config.method.num_noise=8 --config.train.batch_size=32.
"""

from configs import attack_then_noise_cifar10, smoothadv_cifar10


def get_config():
  config = attack_then_noise_cifar10.get_config()
  config.method = smoothadv_cifar10.get_config().method
  config.method.num_noise = 1
  config.method.attack.num_steps = 10
  return config
