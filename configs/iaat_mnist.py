"""Instance-adaptive adversarial training on MNIST, linf: a short run, to see what the radii tell.

  python -m launch --config=configs/iaat_mnist.py --workdir=runs/iaat_mnist

Not a published protocol: a small convolutional network, 15 epochs, PGD with 10 steps; two epochs of
warm-up at 0.1, gamma 0.025. Half an hour or so on two cores.
"""

from configs import pgd_mnist
from robust_jax.config.configuration import component


def get_config():
  config = pgd_mnist.get_config()
  config.epsilon = 0.
  config.train.update(batch_size=128, num_epochs=15., num_steps=0, checkpoint_every=469,
                      eval_batch_size=512)
  config.model = component('model', 'cnn', widths=(16, 32), kernel_size=5, dense=128)
  config.method = component(
      'method', 'iaat', gamma=0.025, warmup_epochs=2, warmup_epsilon=0.1,
      attack=component('attack', 'pgd', norm='linf', num_steps=10, step_ratio=2.,
                       min_step_size=0.01, random_start=True))
  config.schedule = component('schedule', 'constant', learning_rate=1e-3)
  return config
