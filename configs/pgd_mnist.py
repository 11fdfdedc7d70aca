"""Adversarial training on MNIST, linf 0.3 (Madry et al. 2018).

  python -m launch --config=configs/pgd_mnist.py --workdir=runs/pgd_mnist

40 steps of 0.01 with random start, Adam 1e-4, 100,000 steps of 50 images. Published: about
92-93% accuracy against PGD-40 at epsilon 0.3.
"""

from configs import base
from robust_jax.config.configuration import component


def get_config():
  config = base.get_config()
  config.epsilon = 0.3
  config.data.name = 'mnist'
  config.train.update(batch_size=50, num_epochs=84., num_steps=100_000, checkpoint_every=1200,
                      eval_batch_size=500)
  config.model = component('model', 'cnn', widths=(32, 64), kernel_size=5, dense=1024)
  attack = dict(norm='linf', num_steps=40, step_size=0.01, random_start=True)
  config.method = component('method', 'adversarial', attack=component('attack', 'pgd', **attack))
  config.optimizer = component('optimizer', 'adam')
  config.schedule = component('schedule', 'constant', learning_rate=1e-4)
  config.attack = component('attack', 'pgd', **attack, restarts=5)
  config.evaluation.update(epsilons=(0.1, 0.2, 0.3), stride=10, batch_size=250)
  return config
