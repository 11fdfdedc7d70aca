"""Instance-adaptive adversarial training on CIFAR-10: the protocol of Balaji et al. 2019.

  python -m launch --config=configs/iaat_cifar10.py --workdir=runs/iaat_cifar10

WRN-32-10 (normalisation without scale and bias, a stem of 160 channels), batch 256, learning rate
0.1, multiplied by 0.2 at epochs 70, 90 and 100 of 110, weight decay 5e-4; linf PGD-10 with random
start; ten epochs of warm-up at 8/255, then gamma 1.9/255, beta 0.1. The attack's steps are
max(radius / 5, 2/255).

What differs from the authors' run: classes are judged, and images attacked, in evaluation mode
throughout, and training is in float32. Radii are stored on every visit, for the image as augmented
then. Three attacks a step: about three times the time of pgd_wrn_cifar10, on accelerators only.
"""

from configs import pgd_cifar10
from robust_jax.config.configuration import component


def get_config():
  config = pgd_cifar10.get_config()
  config.epsilon = 0.
  config.train.update(batch_size=256, num_epochs=110.)
  config.model = component('model', 'wrn_32_10')
  config.method = component(
      'method', 'iaat',
      attack=component('attack', 'pgd', norm='linf', num_steps=10, step_ratio=2.,
                       min_step_size=2 / 255, random_start=True))
  config.optimizer = component('optimizer', 'sgd', momentum=0.9, weight_decay=5e-4)
  config.schedule = component('schedule', 'step', learning_rate=0.1, boundaries=(70, 90, 100),
                              factor=0.2)
  return config
