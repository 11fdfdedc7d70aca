"""SmoothAdv on scikit-learn's 8x8 digits: the whole path in a minute or two on a laptop.

  python -m launch --config=configs/smoothadv_digits.py --workdir=runs/demo

Three seeds of it, with the mean and its interval (three times as long):

  python -m launch --config=configs/smoothadv_digits.py --workdir=runs/seeds --sweep
"""

from configs import base
from robust_jax.config.configuration import component


def get_config():
  config = base.get_config()
  config.epsilon = 0.5
  config.sigma = 0.25
  config.data.name = 'digits'
  config.train.update(batch_size=64, num_epochs=20., eval_every_epochs=2., log_every=23)
  config.model = component('model', 'cnn', widths=(16, 32), kernel_size=3, dense=64)
  config.method = component(
      'method', 'smoothadv', num_noise=2, epsilon_warmup_epochs=5,
      attack=component('attack', 'pgd', norm='l2', num_steps=2, step_ratio=2.,
                       order='box_then_ball'))
  config.schedule = component('schedule', 'cosine', learning_rate=0.1, warmup_epochs=1.)
  config.attack = component('attack', 'pgd', norm='l2', num_steps=20, step_ratio=2.)
  config.evaluation.update(stride=3, num_noise=16, epsilons=(0.25, 0.5, 0.75, 1.))
  config.certify.n = 10_000
  return config


def sweep():
  return [{'seed': seed} for seed in range(3)]
