r"""Attack of the base classifier, then noise, on CIFAR-10: the second of four orders.

  python -m launch --config=configs/attack_then_noise_cifar10.py \
      --workdir=runs/attack_then_noise_cifar10

The base classifier is attacked at x, and trained on x' + n. ResNet-110, sigma 0.5 and the schedule
of smoothadv_cifar10, with batches of 256 images, 10 steps and epsilon 255/256, of the authors'
grid. Salman et al. 2019 found certified accuracy to rise from noise_beside_attack over this and
noise_then_attack to SmoothAdv with several draws; their figures for it are not known here.
"""

from configs import smoothadv_cifar10
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_cifar10.get_config()
  config.epsilon = 255 / 256
  config.train.batch_size = 256
  config.method = component(
      'method', 'noisy_adversarial', order='attack_then_noise', epsilon_warmup_epochs=10,
      attack=component('attack', 'pgd', norm='l2', num_steps=10, step_ratio=2.,
                       order='box_then_ball'))
  return config
