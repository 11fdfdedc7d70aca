"""Stability training on scikit-learn's 8x8 digits: a minute on a laptop.

  python -m launch --config=configs/stability_digits.py --workdir=runs/stability_digits

The second term is least where every image is given one class, whichever, and at first training goes
that way: it needs a smaller learning rate and more epochs than the other methods here.
"""

from configs import smoothadv_digits
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_digits.get_config()
  config.epsilon = 0.
  config.train.update(num_epochs=40., eval_every_epochs=4.)
  config.schedule.learning_rate = 0.03
  config.method = component('method', 'stability', weight=2.)
  return config
