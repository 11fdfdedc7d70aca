"""Robust optimisation on 8x8 digits (Shaham et al. 2015): a baseline and nets for l1, l2 and linf.

  python -m launch.shaham --config=configs/robust_digits.py --workdir=runs/robust_digits

trains the four points of sweep() and makes the paper's tables and plots of them, in a minute or
two. One net alone, here that for linf:

  python -m launch --config=configs/robust_digits.py --workdir=runs/robust_linf

l1 and l2 are --config.method.attack.norm=l1 --config.epsilon=1.0 and norm=l2 --config.epsilon=0.75.
Algorithm 1: one ascent step, an update on the points it leads to. --config.method.clean_share=0.5
is the mixture with clean images (equation 3).
"""

from configs import base
from robust_jax.config.configuration import component


def get_config():
  config = base.get_config()
  config.epsilon = 0.1
  config.train.update(batch_size=64, num_epochs=20., eval_every_epochs=5., log_every=23)
  config.model = component('model', 'cnn', widths=(16, 32), kernel_size=3, dense=64)
  config.method = component('method', 'adversarial',
                            attack=component('attack', 'fgsm', norm='linf', order='ball_only'))
  config.schedule = component('schedule', 'cosine', learning_rate=0.1, warmup_epochs=1.)
  config.attack = component('attack', 'pgd', norm='linf', num_steps=20, random_start=True)
  config.evaluation.update(epsilons=(0.05, 0.1, 0.15, 0.2), stride=1)
  return config


def sweep():
  return [
      {'method': component('method', 'standard')},
      {'method.attack.norm': 'l1', 'epsilon': 1.},
      {'method.attack.norm': 'l2', 'epsilon': 0.75},
      {'method.attack.norm': 'linf', 'epsilon': 0.1},
  ]
