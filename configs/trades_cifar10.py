"""TRADES on CIFAR-10, linf 0.031, beta 6: the protocol of Zhang et al. 2019.

  python -m launch --config=configs/trades_cifar10.py --workdir=runs/trades_cifar10

WRN-34-10, batch 128, 76 epochs, learning rate 0.1 divided by ten for the last two, momentum 0.9,
weight decay 2e-4, inner PGD of KL with 10 steps of 0.007, no input normalisation. Published: 84.92%
clean accuracy, 56.61% under 20 steps of PGD of 0.003, 53.08% under AutoAttack (RobustBench).
The authors' code passes clean and attacked images through BatchNorm one after the other, here they
are one batch.
"""

from configs import pgd_cifar10
from robust_jax.config.configuration import component


def get_config():
  config = pgd_cifar10.get_config()
  config.epsilon = 0.031
  config.data.update(mean=(0.,), std=(1.,))
  config.train.update(batch_size=128, num_epochs=76.)
  config.model = component('model', 'wrn_34_10')
  config.method = component(
      'method', 'trades', beta=6.,
      attack=component('attack', 'pgd', norm='linf', loss='kl', num_steps=10, step_size=0.007))
  config.optimizer = component('optimizer', 'sgd', momentum=0.9, weight_decay=2e-4)
  config.schedule = component('schedule', 'step', learning_rate=0.1, boundaries=(74,))
  config.attack = component('attack', 'pgd', norm='linf', num_steps=20, step_size=0.003,
                            random_start=True)
  config.evaluation.epsilons = (0.031,)
  return config
