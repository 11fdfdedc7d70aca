"""Instance-adaptive SmoothAdv on scikit-learn's 8x8 digits, l2: minutes on a laptop.

  python -m launch --config=configs/iaat_smoothadv_digits.py --workdir=runs/iaat_smoothadv_digits

As smoothadv_digits, but every training image has an l2 radius of its own, kept in radii.npz: it
grows where the mean prediction of the noisy copies withstands the attack. A combination that is not
published.
"""

from configs import smoothadv_digits
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_digits.get_config()
  config.epsilon = 0.
  config.method = component(
      'method', 'iaat_smoothadv', num_noise=2, gamma=0.1, warmup_epochs=5, warmup_epsilon=0.5,
      attack=component('attack', 'pgd', norm='l2', num_steps=2, step_ratio=2.,
                       order='box_then_ball'))
  return config
