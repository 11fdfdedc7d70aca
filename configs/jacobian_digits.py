"""Contractive training on 8x8 digits: a penalty on the Jacobian (Gu & Rigazio 2014).

  python -m launch --config=configs/jacobian_digits.py --workdir=runs/jacobian_digits

Half a minute.
"""

from configs import tangent_digits
from robust_jax.config.configuration import component


def get_config():
  config = tangent_digits.get_config()
  config.epsilon = 0.
  config.data.tangents = 0
  config.method = component('method', 'jacobian_penalty', weight=0.1)
  return config
