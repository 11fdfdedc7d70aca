"""Adversarial training on CIFAR-10, linf 8/255, PGD-7 with steps of 2/255 (Madry et al. 2018).

  python -m launch --config=configs/pgd_cifar10.py --workdir=runs/pgd_cifar10
"""

from configs import smoothadv_cifar10
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_cifar10.get_config()
  config.epsilon = 8 / 255
  config.sigma = 0.
  config.train.update(batch_size=128, num_epochs=200.)
  attack = dict(norm='linf', step_size=2 / 255, random_start=True)
  config.method = component(
      'method', 'adversarial', attack=component('attack', 'pgd', num_steps=7, **attack))
  config.optimizer = component('optimizer', 'sgd', momentum=0.9, weight_decay=2e-4)
  config.schedule = component('schedule', 'step', learning_rate=0.1, boundaries=(100, 150))
  config.attack = component('attack', 'pgd', num_steps=20, **attack)
  config.evaluation.update(epsilons=(2 / 255, 4 / 255, 8 / 255, 16 / 255), stride=10,
                           batch_size=256)
  return config
