"""Robust optimisation within the tangent space of 8x8 digits (Shaham et al. 2015, eqs. 12, 13).

  python -m launch --config=configs/tangent_digits.py --workdir=runs/tangent_digits

Half a minute. The tangent directions are the first eight principal ones of each training image's 20
nearest neighbours of its class. The penalty on the derivatives along them (equation 4) instead:
--config.method.name=tangent_penalty --config.method.weight=0.1.
"""

from configs import robust_digits
from robust_jax.config.configuration import component


def get_config():
  config = robust_digits.get_config()
  config.epsilon = 1.
  config.data.update(tangents=8, tangent_neighbors=20)
  config.method = component('method', 'tangent')
  config.attack = component('attack', 'pgd', norm='l2', num_steps=20, random_start=True)
  config.evaluation.epsilons = (0.25, 0.5, 0.75, 1.)
  return config
