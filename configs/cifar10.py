"""CIFAR-10: smoothing by Salman et al. 2019 (ResNet-110, sigma 0.5), and training in linf."""

from configs import base
from configs.base import attack, method, model, optimizer, schedule

CIFAR10 = dict(
    data=dict(name='cifar10', augment='crop_flip'),
    certify=dict(batch_size=400),
    certify_images=dict(stride=20))
L2_STEPS = dict(norm='l2', random_start=False, step_ratio=2., order='box_then_ball')
LINF_STEPS = dict(norm='linf', step_size=2 / 255, random_start=True)
# Of CTBench's training attacks, whose one step goes to a corner of the ball.
CORNER = attack('pgd', norm='linf', num_steps=1, step_ratio=10., random_start=True)


def _smoothed(**changes):
  """Salman et al. 2019: ResNet-110, sigma 0.5, 150 epochs."""
  return base.get_config(CIFAR10, dict(
      sigma=0.5,
      train=dict(batch_size=256, num_epochs=150.),
      model=model('resnet110'),
      schedule=schedule('step', learning_rate=0.1, boundaries=(50, 100)),
      attack=attack('pgd', **L2_STEPS, num_steps=20),
      evaluation=dict(epsilons=(0.25, 0.5, 0.75, 1., 1.25, 1.5, 1.75), stride=20)), **changes)


def _linf(**changes):
  """A classifier without noise, attacked by PGD-20 in linf."""
  return base.get_config(CIFAR10, dict(
      epsilon=8 / 255,
      train=dict(batch_size=128, num_epochs=200.),
      optimizer=optimizer('sgd', momentum=0.9, weight_decay=5e-4),
      schedule=schedule('step', learning_rate=0.1, boundaries=(100, 150)),
      attack=attack('pgd', **LINF_STEPS, num_steps=20),
      evaluation=dict(epsilons=(2 / 255, 4 / 255, 8 / 255, 16 / 255), stride=10, batch_size=256)),
      **changes)


def smoothadv():
  """SmoothAdv, ResNet-110, l2 2.0, sigma 0.5."""
  # The authors' code makes 8 steps of 32 images x 8 noises of each 256 images that it loads.
  return _smoothed(epsilon=512 / 256, train=dict(batch_size=32), method=method(
      'smoothadv', num_noise=8, epsilon_warmup_epochs=10,
      attack=attack('pgd', **L2_STEPS, num_steps=2)))


def smoothadv_finetune():
  """SmoothAdv from weights of other classes, 30 epochs."""
  config = smoothadv()
  config.weights = 'runs/pretrained_imagenet32'
  config.new_head = True
  config.train.num_epochs = 30.
  config.method.epsilon_warmup_epochs = 0
  config.schedule = schedule('constant', learning_rate=0.001)
  return config


def self_training():
  """SmoothAdv, half of each batch pseudo-labelled images."""
  config = smoothadv()
  # Arrays images, [number, 32, 32, 3] uint8, and labels, as the 500,000 of Carmon et al. 2019.
  config.extra.update(name='pseudo_labelled.npz', share=0.5, weight=1.)
  return config


def noise_beside_attack():
  """Half the loss on attacked, half on noisy images."""
  return _smoothed(epsilon=255 / 256, method=method(
      'noisy_adversarial', order='beside', epsilon_warmup_epochs=10,
      attack=attack('pgd', **L2_STEPS, num_steps=10)))


def attack_then_noise():
  """Attack of the base classifier, then noise."""
  return _smoothed(epsilon=255 / 256, method=method(
      'noisy_adversarial', order='attack_then_noise', epsilon_warmup_epochs=10,
      attack=attack('pgd', **L2_STEPS, num_steps=10)))


def noise_then_attack():
  """Noise, then an attack: SmoothAdv with one noise."""
  return _smoothed(epsilon=255 / 256, method=method(
      'smoothadv', num_noise=1, epsilon_warmup_epochs=10,
      attack=attack('pgd', **L2_STEPS, num_steps=10)))


def gaussian():
  """Gaussian augmentation, ResNet-110, sigma 0.5."""
  return _smoothed(train=dict(batch_size=400, num_epochs=90.), method=method('gaussian'),
                   schedule=dict(boundaries=(30, 60)))


def certify():
  """Certifies a trained ResNet-110 at radii 0.25 to 1.75.

  config.weights, config.sigma and --stages=verify as in configs/mnist.py:certify.
  """
  config = smoothadv()
  config.certify = base.certify('sequential', radii=(0.25, 0.5, 0.75, 1., 1.25, 1.5, 1.75),
                                indifference=0.01, batch_size=400)
  return config


def pgd():
  """Adversarial training, PGD-7, ResNet-110, linf 8/255."""
  return _linf(model=model('resnet110'), optimizer=dict(weight_decay=2e-4), method=method(
      'adversarial', attack=attack('pgd', **LINF_STEPS, num_steps=7)))


def pgd_preact():
  """PGD-10, PreActResNet-18, linf 8/255 (Rice et al. 2020)."""
  # Their attack sees the network in training mode, here in evaluation mode.
  return _linf(data=dict(std=(0.2471, 0.2435, 0.2616)), model=model('preact_resnet18'),
               attack=dict(num_steps=10), method=method(
                   'adversarial', attack=attack('pgd', **LINF_STEPS, num_steps=10)))


def pgd_wrn():
  """PGD-10, WRN-28-10, linf 8/255 (Rice et al. 2020)."""
  config = pgd_preact()
  config.model = model('wide_resnet', depth=28, width=10)
  return config


def autoattack():
  """AutoAttack at linf 8/255, as RobustBench.

  Of a PreActResNet-18, or of config.model; config.weights as in configs/mnist.py:autoattack.
  """
  config = pgd_preact()
  config.attack = attack('autoattack', norm='linf', version='standard')
  config.evaluation.update(epsilons=(8 / 255,), stride=1)
  return config


def autoattack_l2():
  """AutoAttack at l2 0.5, as RobustBench."""
  config = autoattack()
  config.epsilon = 0.5
  config.method.attack.update(norm='l2', step_size=15 / 255)
  config.attack.norm = 'l2'
  config.evaluation.epsilons = (0.5,)
  return config


def trades():
  """TRADES, WRN-34-10, linf 0.031 (Zhang et al. 2019)."""
  return _linf(
      epsilon=0.031, data=dict(mean=(0.,), std=(1.,)), train=dict(num_epochs=76.),
      model=model('wrn_34_10'), optimizer=dict(weight_decay=2e-4), schedule=dict(boundaries=(74,)),
      method=method('trades', beta=6., attack=attack(
          'pgd', norm='linf', loss='kl', random_start=False, num_steps=10, step_size=0.007)),
      attack=dict(step_size=0.003), evaluation=dict(epsilons=(0.031,)))


def iaat():
  """IAAT, WRN-32-10, linf (Balaji et al. 2019)."""
  # Three attacks a step: about three times the time of pgd_wrn. What differs from the authors' run:
  # evaluation mode when classes are judged and images attacked, and float32.
  return _linf(
      epsilon=0., train=dict(batch_size=256, num_epochs=110.), model=model('wrn_32_10'),
      schedule=dict(boundaries=(70, 90, 100), factor=0.2), method=method('iaat', attack=attack(
          'pgd', norm='linf', num_steps=10, step_ratio=2., min_step_size=2 / 255,
          random_start=True)))


def _ctbench(epsilon, name, num_epochs, ramp_epochs, l1=0., **fields):
  """CTBench: a clean epoch, then the radius grows; drops 40 and 20 epochs before the end."""
  # Theirs: crops by 2 pixels, and at the end of each epoch BatchNorm's statistics anew.
  return _linf(
      epsilon=epsilon,
      train=dict(num_epochs=float(num_epochs), eval_every_epochs=5.), model=model('cnn7'),
      method=method(name, warmup_epochs=1., ramp_epochs=ramp_epochs, ramp='smooth',
                    regularizer=0.5, **fields),
      optimizer=optimizer('adam', clip_norm=10., l1=l1, decay_all=False),
      schedule=schedule('step', learning_rate=5e-4, factor=0.2,
                        boundaries=(num_epochs - 40, num_epochs - 20)),
      evaluation=dict(epsilons=(epsilon,)))


def _ctbench_2(name, **fields):
  return _ctbench(2 / 255, name, 160, 80., **fields)


def _ctbench_8(name, **fields):
  return _ctbench(8 / 255, name, 240, 120., **fields)


def ibp_2():
  """IBP, linf 2/255, 7 layers with BatchNorm (CTBench)."""
  return _ctbench_2('ibp', l1=1e-6, kappa_start=0.2, kappa_end=0.2)


def mtl_ibp_2():
  """MTL-IBP, linf 2/255, 7 layers with BatchNorm (CTBench)."""
  return _ctbench_2('mtl_ibp', l1=3e-6, alpha=0.01, attack_scale=2., attack=CORNER)


def ibp_8():
  """IBP, linf 8/255, 7 layers with BatchNorm (CTBench)."""
  return _ctbench_8('ibp', kappa_start=0., kappa_end=0.)


def sabr_8():
  """SABR, linf 8/255, 7 layers with BatchNorm (CTBench)."""
  return _ctbench_8('sabr', size=0.9, attack=attack(
      'pgd', norm='linf', num_steps=5, random_start=True, restarts=3))


def mtl_ibp_8():
  """MTL-IBP, linf 8/255, 7 layers with BatchNorm (CTBench)."""
  return _ctbench_8('mtl_ibp', alpha=0.6, attack=CORNER)


def get_config(name='smoothadv'):
  return base.experiment(globals(), name)
