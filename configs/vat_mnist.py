"""Virtual adversarial training on MNIST with all labels (Miyato et al. 2016).

  python -m launch --config=configs/vat_mnist.py --workdir=runs/vat_mnist

l2 radius 2.1, lambda 1, one power iteration; a dense network of 1200, 600, 300, 150, Adam 0.002
times 0.9 an epoch, batches of 100, 100 epochs, as the authors' code has them. Published: 0.64% test
error. Their network has BatchNorm, which `mlp` has not; the radius is in [0, 1] pixel units there
too.
"""

from configs import base
from robust_jax.config.configuration import component


def get_config():
  config = base.get_config()
  config.epsilon = 2.1
  config.data.name = 'mnist'
  config.train.update(batch_size=100, num_epochs=100., checkpoint_every=1200, eval_batch_size=500)
  config.model = component('model', 'mlp', hidden=(1200, 600, 300, 150))
  config.method = component('method', 'vat')
  config.optimizer = component('optimizer', 'adam')
  config.schedule = component('schedule', 'step', learning_rate=0.002, factor=0.9,
                              boundaries=tuple(range(1, 100)))
  config.attack = component('attack', 'pgd', norm='l2', num_steps=20, random_start=True)
  config.evaluation.update(epsilons=(0.5, 1., 1.5, 2.), stride=10, batch_size=250)
  return config
