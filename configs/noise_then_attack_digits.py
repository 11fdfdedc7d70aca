r"""Noise, then an attack of the base classifier, on 8x8 digits: the third of four orders.

  python -m launch --config=configs/noise_then_attack_digits.py \
      --workdir=runs/noise_then_attack_digits

The base classifier is attacked at x + n, which is SmoothAdv with one draw. The fourth order is
SmoothAdv with several: smoothadv_digits.
"""

from configs import smoothadv_digits


def get_config():
  config = smoothadv_digits.get_config()
  config.method.num_noise = 1
  return config
