"""Instance-adaptive adversarial training on scikit-learn's 8x8 digits, linf: minutes on a laptop.

  python -m launch --config=configs/iaat_digits.py --workdir=runs/iaat_digits

Every training image has a radius of its own, kept in radii.npz and shown in the report. In place of
the published warm-up radius of 8/255, step of gamma and ten epochs of warm-up: 0.1, 0.05 and five,
for images of larger margins that are seen fewer times. Compare with pgd_digits. With
--config.weights=DIR of another such run on the same images, and --config.method.warmup_epochs=0,
training goes on from its radii.
"""

from configs import pgd_digits
from robust_jax.config.configuration import component


def get_config():
  config = pgd_digits.get_config()
  config.epsilon = 0.
  config.method = component(
      'method', 'iaat', gamma=0.05, warmup_epochs=5, warmup_epsilon=0.1,
      attack=component('attack', 'pgd', norm='linf', num_steps=10, step_ratio=2.,
                       min_step_size=0.01, random_start=True))
  return config
