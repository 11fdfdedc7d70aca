r"""Noise beside the attack of the base classifier, on 8x8 digits: the first of four orders.

  python -m launch --config=configs/noise_beside_attack_digits.py \
      --workdir=runs/noise_beside_attack_digits

The base classifier is attacked at x; x' without noise and x + n without attack have half of the
loss each. As smoothadv_digits but for the method.
"""

from configs import attack_then_noise_digits


def get_config():
  config = attack_then_noise_digits.get_config()
  config.method.order = 'beside'
  return config
