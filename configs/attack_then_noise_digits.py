r"""Attack of the base classifier, then noise, on 8x8 digits: the second of four orders.

  python -m launch --config=configs/attack_then_noise_digits.py \
      --workdir=runs/attack_then_noise_digits

The base classifier is attacked at x, and trained on x' + n. As smoothadv_digits but for the method.
"""

from configs import smoothadv_digits
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_digits.get_config()
  config.method = component(
      'method', 'noisy_adversarial', order='attack_then_noise', epsilon_warmup_epochs=5,
      attack=component('attack', 'pgd', norm='l2', num_steps=2, step_ratio=2.,
                       order='box_then_ball'))
  return config
