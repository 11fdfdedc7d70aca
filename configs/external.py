"""A classifier of your own: a function of images.

  python -m launch --config=configs/external.py --config.model.function=my_module:logits \
      --config.data.name=cifar10 --config.sigma=0.5 --workdir=runs/mine

attacks and certifies `logits` of my_module.py, found from the current folder, which JAX can trace.
Images are in [0, 1], float32 [batch, height, width, channel]; normalisation is its own affair.
sigma 0 attacks it as it is, without certificates. PyTorch weights of a network that this
project has need no function: give config.weights to the config of that network.
"""

from configs import base
from configs.base import attack, model


def get_config():
  config = base.get_config()
  config.model = model('external', function='')
  config.attack = attack('pgd', norm='l2', random_start=False, num_steps=20, step_ratio=2.)
  config.certify_images.stride = 20
  return config
