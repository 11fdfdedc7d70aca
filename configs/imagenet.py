"""ImageNet, ResNet-50, 224x224 pixels, 90 epochs: for several accelerators.

python -m launch.prepare_imagenet ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar --data_dir=DIR
writes what --config.data.data_dir=DIR takes, as TFDS does. The 50,000 validation images, in TFDS's
order, are the test split.
"""

from configs import base
from configs.base import attack, method, model, schedule

L2_STEPS = dict(norm='l2', random_start=False, step_ratio=2., order='box_then_ball')


def _resnet50(**changes):
  return base.get_config(dict(
      sigma=0.5,
      data=dict(name='imagenet2012', image_size=224, augment='resized_crop',
                mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
      train=dict(batch_size=256, num_epochs=90., checkpoint_every=1000, eval_batch_size=256),
      model=model('resnet50'),
      schedule=schedule('step', learning_rate=0.1, boundaries=(30, 60)),
      attack=attack('pgd', **L2_STEPS, num_steps=20),
      evaluation=dict(epsilons=(0.5, 1., 1.5, 2.), stride=100, batch_size=16),
      certify=dict(batch_size=400),
      certify_images=dict(stride=100, images_per_call=10)), **changes)


def smoothadv():
  """SmoothAdv, one-step PGD, l2 255/256, sigma 0.5."""
  return _resnet50(epsilon=255 / 256, method=method(
      'smoothadv', num_noise=1, epsilon_warmup_epochs=10,
      attack=attack('pgd', **L2_STEPS, num_steps=1)))


def smoothadv_ddn():
  """SmoothAdv, two steps of DDN, l2 2.0, sigma 0.5."""
  # As the authors: the sphere begins at the warmed-up epsilon. Their own rounding is 'nearest',
  # whose perturbations may be longer than epsilon.
  return _resnet50(epsilon=512 / 256, method=method(
      'smoothadv', num_noise=1, epsilon_warmup_epochs=10,
      attack=attack('ddn', num_steps=2, init_norm=0., gamma=0.05)))


def gaussian():
  """Gaussian augmentation, sigma 0.5."""
  return _resnet50(train=dict(batch_size=400), method=method('gaussian'))


def pgd():
  """Adversarial training, PGD-3, linf 4/255."""
  return _resnet50(
      epsilon=4 / 255, sigma=0.,
      method=method('adversarial', attack=attack(
          'pgd', norm='linf', random_start=False, num_steps=3, step_ratio=2.)),
      attack=attack('pgd', norm='linf', num_steps=50, step_ratio=2.5, random_start=True),
      evaluation=dict(epsilons=(1 / 255, 2 / 255, 4 / 255, 8 / 255), stride=10, batch_size=128))


def autoattack():
  """AutoAttack at linf 4/255 on 5,000 images.

  Of a ResNet-50, or of config.model; config.weights as in configs/mnist.py:autoattack. They are
  every tenth of the 50,000. RobustBench's own 5,000 are a list of files in its package,
  helper_files/imagenet_test_image_ids.txt: in a folder DIR/test/CLASS/ they are
  --config.data.name=folder --config.data.data_dir=DIR --config.evaluation.stride=1.
  """
  config = pgd()
  config.attack = attack('autoattack', norm='linf', version='standard')
  config.evaluation.update(epsilons=(4 / 255,), stride=10, batch_size=64)
  return config


def certify():
  """Certifies a trained ResNet-50 at radii 0.5, 1.0 and 1.5.

  config.weights, config.sigma and --stages=verify as in configs/mnist.py:certify.
  """
  config = smoothadv()
  config.certify = base.certify('sequential', radii=(0.5, 1., 1.5), indifference=0.01,
                                batch_size=400)
  return config


def get_config(name='smoothadv'):
  return base.experiment(globals(), name)
