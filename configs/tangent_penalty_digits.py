r"""A penalty on the derivatives along tangent directions, 8x8 digits (Shaham et al. 2015, eq. 4).

  python -m launch --config=configs/tangent_penalty_digits.py \
      --workdir=runs/tangent_penalty_digits

Half a minute. As tangent_digits but for the method.
"""

from configs import tangent_digits
from robust_jax.config.configuration import component


def get_config():
  config = tangent_digits.get_config()
  config.epsilon = 0.
  config.method = component('method', 'tangent_penalty', weight=0.1)
  return config
