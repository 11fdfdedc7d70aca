"""Adversarial training on CIFAR-10, linf 8/255, by the protocol of Rice et al. 2020.

  python -m launch --config=configs/pgd_preact_cifar10.py --workdir=runs/pgd_preact_cifar10

PreActResNet-18, PGD-10 with steps of 2/255 and random start, batch 128, 200 epochs, learning rate
0.1 divided by ten at epochs 100 and 150, weight decay 5e-4 (Overfitting in adversarially robust
deep learning). Robust accuracy on test images is highest soon after epoch 100 and then falls, while
clean accuracy still rises: the authors stop there by it, so --config.train.num_steps=41055 (105
epochs of 391 steps) comes nearer to their figures than config.train.keep_best, which goes by clean
accuracy. Their attack and a clean pass see the network in training mode, and move its batch
statistics; here the attack sees it in evaluation mode.
"""

from configs import pgd_cifar10
from robust_jax.config.configuration import component


def get_config():
  config = pgd_cifar10.get_config()
  config.data.std = (0.2471, 0.2435, 0.2616)
  config.model = component('model', 'preact_resnet18')
  attack = dict(norm='linf', num_steps=10, step_size=2 / 255, random_start=True)
  config.method = component('method', 'adversarial', attack=component('attack', 'pgd', **attack))
  config.optimizer = component('optimizer', 'sgd', momentum=0.9, weight_decay=5e-4)
  config.attack = component('attack', 'pgd', **attack)
  return config
