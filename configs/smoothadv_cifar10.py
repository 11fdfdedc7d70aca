"""SmoothAdv on CIFAR-10 (Salman et al. 2019): ResNet-110, PGD, sigma 0.5.

  python -m launch --config=configs/smoothadv_cifar10.py --workdir=runs/smoothadv_cifar10

2 steps, 8 noises, epsilon 512/256 (divided by 256, as published). Published at sigma 0.5, 10,000
images: ACR 0.738; certified accuracy 57.4/48.0/38.3/28.1% at radius 0/0.5/1.0/1.5 and, with
ResNet-20 (--config.model.name=resnet20), ACR 0.692 at epsilon 255/256, 8 noises. The authors'
code loads 256 images and makes 8 steps of 32 images x 8 noises of them: batch_size 32 here.
About 83 hours on one P100 at 10 steps.
"""

from configs import base
from robust_jax.config.configuration import component


def get_config():
  config = base.get_config()
  config.epsilon = 512 / 256
  config.sigma = 0.5
  config.data.update(name='cifar10', augment='crop_flip')
  config.train.update(batch_size=32, num_epochs=150.)
  config.model = component('model', 'resnet110')
  config.method = component(
      'method', 'smoothadv', num_noise=8, epsilon_warmup_epochs=10,
      attack=component('attack', 'pgd', norm='l2', num_steps=2, step_ratio=2.,
                       order='box_then_ball'))
  config.schedule = component('schedule', 'step', learning_rate=0.1, boundaries=(50, 100))
  config.attack = component('attack', 'pgd', norm='l2', num_steps=20, step_ratio=2.,
                            order='box_then_ball')
  config.evaluation.update(epsilons=(0.25, 0.5, 0.75, 1., 1.25, 1.5, 1.75), stride=20)
  config.certify.batch_size = 400
  config.certify_images.stride = 20
  return config
