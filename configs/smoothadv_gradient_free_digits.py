r"""SmoothAdv whose attack never differentiates the network, on 8x8 digits: a few minutes.

  python -m launch --config=configs/smoothadv_gradient_free_digits.py \
      --workdir=runs/smoothadv_gradient_free_digits

As smoothadv_digits, but the ascent direction is Stein's estimate from 8 draws (Salman et al. 2019,
section 2.2), which all take part in the update. Of so few draws the estimate is mostly minus their
mean: the attack is hardly better than a random direction, and takes a part of the noise away.
"""

from configs import smoothadv_digits


def get_config():
  config = smoothadv_digits.get_config()
  config.method.num_noise = 8
  config.method.attack.smoothed_objective = 'gradient_free'
  return config
