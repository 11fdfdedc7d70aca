r"""SmoothAdv on ImageNet (Salman et al. 2019): ResNet-50, one-step PGD, sigma 0.5, 90 epochs.

  python -m launch --config=configs/smoothadv_imagenet.py --workdir=runs/smoothadv_imagenet \
      --config.data.data_dir=DIR

DIR/imagenet2012 is what TFDS prepares from ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar,
as array_record files (156 GiB). The 50,000 validation images, in TFDS's order, are the test split.

One step, one noise, epsilon 255/256 (divided by 256, as published), which warms up over 10 epochs
as on CIFAR-10. Published at sigma 0.5, every 100th image (a log of 427): ACR 0.825; certified
accuracy 53.6/49.4/43.3/36.8% at radius 0/0.5/1.0/1.5; with epsilon 512/256, ACR 0.786. Made for
several accelerators; nobody has trained it to the end with this code.
"""

from configs import base
from robust_jax.config.configuration import component


def get_config():
  config = base.get_config()
  config.epsilon = 255 / 256
  config.sigma = 0.5
  config.data.update(name='imagenet2012', image_size=224, augment='resized_crop',
                     mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
  config.train.update(batch_size=256, num_epochs=90., checkpoint_every=1000, eval_batch_size=256)
  config.model = component('model', 'resnet50')
  config.method = component(
      'method', 'smoothadv', num_noise=1, epsilon_warmup_epochs=10,
      attack=component('attack', 'pgd', norm='l2', num_steps=1, step_ratio=2.,
                       order='box_then_ball'))
  config.schedule = component('schedule', 'step', learning_rate=0.1, boundaries=(30, 60))
  config.attack = component('attack', 'pgd', norm='l2', num_steps=20, step_ratio=2.,
                            order='box_then_ball')
  config.evaluation.update(epsilons=(0.5, 1., 1.5, 2.), stride=100, batch_size=16)
  config.certify.batch_size = 400
  config.certify_images.update(stride=100, images_per_call=10)
  return config
