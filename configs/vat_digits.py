"""Virtual adversarial training on 8x8 digits (Miyato et al. 2016).

  python -m launch --config=configs/vat_digits.py --workdir=runs/vat_digits

Half a minute.
"""

from configs import jacobian_digits
from robust_jax.config.configuration import component


def get_config():
  config = jacobian_digits.get_config()
  config.epsilon = 1.
  config.method = component('method', 'vat')
  return config
