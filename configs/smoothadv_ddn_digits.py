"""SmoothAdv with DDN as its attack, on 8x8 digits: a minute or two on a laptop.

  python -m launch --config=configs/smoothadv_ddn_digits.py --workdir=runs/smoothadv_ddn_digits

As smoothadv_digits but for the attack: 4 steps on a sphere that begins at the warmed-up epsilon
(init_norm=0), as in the authors' training.
"""

from configs import smoothadv_digits
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_digits.get_config()
  config.method.attack = component('attack', 'ddn', num_steps=4, init_norm=0., gamma=0.05)
  return config
