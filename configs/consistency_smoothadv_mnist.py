"""Consistency regularisation with SmoothAdv on MNIST: the LeNet protocol of its authors.

  python -m launch --config=configs/consistency_smoothadv_mnist.py \\
      --workdir=runs/consistency_smoothadv_mnist

Published at sigma 0.5, 10,000 images, n=100,000: ACR 1.696; 0.932 and 1.816 at sigma 0.25 and 1.
Attack, number of draws (4) and warm-up are those of smoothadv_mnist, lambda is 5 and eta 0.5, as in
the authors' commands.
"""

from configs import smoothadv_mnist
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_mnist.get_config()
  config.method = component(
      'method', 'consistency', weight=5., eta=0.5, num_noise=config.method.num_noise,
      epsilon_warmup_epochs=config.method.epsilon_warmup_epochs, attack=config.method.attack)
  return config
