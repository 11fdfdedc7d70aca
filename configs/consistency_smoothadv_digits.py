r"""Consistency regularisation with SmoothAdv's attack, on 8x8 digits: a minute or two on a laptop.

  python -m launch --config=configs/consistency_smoothadv_digits.py \
      --workdir=runs/consistency_smoothadv_digits
"""

from configs import smoothadv_digits
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_digits.get_config()
  config.method = component(
      'method', 'consistency', num_noise=config.method.num_noise, weight=5., eta=0.5,
      epsilon_warmup_epochs=config.method.epsilon_warmup_epochs, attack=config.method.attack)
  return config
