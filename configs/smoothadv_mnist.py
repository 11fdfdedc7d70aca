"""SmoothAdv on MNIST, the LeNet protocol of the Consistency authors (90 epochs).

  python -m launch --config=configs/smoothadv_mnist.py --workdir=runs/smoothadv_mnist

Published at sigma 0.5, 10,000 images, n=100,000: ACR 1.687; certified accuracy 99.0/95.7/92.9/
81.1% at radius 0/0.75/1.0/1.5 (PGD with 10 steps, 4 noises, epsilon 1.0). Hours on two cores;
README.md names a reduced run with its figures.
"""

from configs import base
from robust_jax.config.configuration import component


def get_config():
  config = base.get_config()
  config.epsilon = 255 / 256
  config.sigma = 0.5
  config.data.name = 'mnist'
  config.train.update(batch_size=256, num_epochs=90.)
  config.model = component('model', 'lenet')
  # Box last, and normalised gradients, as the Consistency authors' SmoothAdv.
  config.method = component(
      'method', 'smoothadv', num_noise=4, epsilon_warmup_epochs=10,
      attack=component('attack', 'pgd', norm='l2', num_steps=10, step_ratio=2.,
                       order='ball_then_box'))
  # x0.1 every 30 epochs; their schedule drops one epoch late.
  config.schedule = component('schedule', 'step', learning_rate=0.01, boundaries=(31, 61))
  config.attack = component('attack', 'pgd', norm='l2', num_steps=20, step_ratio=2.)
  config.evaluation.update(epsilons=(0.25, 0.5, 0.75, 1., 1.25, 1.5, 1.75), stride=100)
  return config
