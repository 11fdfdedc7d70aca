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


def smoothmix():
  """SmoothMix, ResNet-110, sigma 0.5 (Jeong et al. 2021)."""
  # Attack steps of length 1; theirs are 0.5 at sigma 0.25, 2 at sigma 1. Of each 256 images
  # that they load, they make 2 steps of 128 images x 2 noises.
  return _smoothed(epsilon=4., train=dict(batch_size=128), method=method(
      'smoothmix', num_noise=2, weight=5., attack=attack(
          'pgd', norm='l2', random_start=False, num_steps=4, step_ratio=1.)))


def catrs():
  """CAT-RS, ResNet-110, sigma 0.5 (Jeong et al. 2023)."""
  # By 10,000 votes of `gaussian`: --config.label.num_noise=10000 --config.label.output=FILE.npy.
  # Their weight is 0.5 at sigma 0.25 and 2 at sigma 1; of 256 images they make 4 steps of 64.
  return _smoothed(epsilon=1., train=dict(batch_size=64), method=method('catrs', weight=1.),
                   data=dict(targets_file='runs/votes_cifar10.npy'))


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


def pgd_awp():
  """PGD-10, AWP, PreActResNet-18 (Wu et al. 2020)."""
  config = pgd_preact()
  config.train.awp = 0.01
  return config


def trades_awp():
  """TRADES, AWP, WRN-34-10 (Wu et al. 2020)."""
  return _linf(
      data=dict(mean=(0.,), std=(1.,)), train=dict(awp=0.005, ascent_start_epoch=9),
      model=model('wrn_34_10'), schedule=dict(boundaries=(99, 149)),
      method=method('trades', beta=6., attack=attack(
          'pgd', norm='linf', loss='kl', random_start=False, num_steps=10, step_size=2 / 255)))


def sam():
  """SAM, WRN-28-10, without attacks (Foret et al. 2021)."""
  # Their v differs from device to device, of 32 images each.
  return _linf(
      train=dict(batch_size=256, sam=0.05), model=model('wide_resnet', depth=28, width=10),
      optimizer=dict(nesterov=True, clip_norm=5.), method=method('standard'),
      schedule=schedule('cosine', learning_rate=0.1))


def fast():
  """RS-FGSM, PreActResNet-18, linf 8/255 (Wong et al. 2020)."""
  # Their attack sees the network in training mode, and theirs is float16.
  config = pgd_preact()
  config.model.update(form='wong', final_norm=False)
  config.train.update(num_epochs=15., on_overfitting='stop')
  config.schedule = schedule('linear', learning_rate=0.2, warmup_epochs=7.5)
  config.method.attack = attack('pgd', norm='linf', num_steps=1, step_size=10 / 255,
                                random_start=True)
  return config


def n_fgsm():
  """N-FGSM, PreActResNet-18 (de Jorge et al. 2022)."""
  config = fast()
  config.train.num_epochs = 30.
  config.model.final_norm = True
  config.schedule.warmup_epochs = 15.
  config.method = method('n_fgsm', noise_ratio=2., step_ratio=1.)
  return config


def trades():
  """TRADES, WRN-34-10, linf 0.031 (Zhang et al. 2019)."""
  return _linf(
      epsilon=0.031, data=dict(mean=(0.,), std=(1.,)), train=dict(num_epochs=76.),
      model=model('wrn_34_10'), optimizer=dict(weight_decay=2e-4), schedule=dict(boundaries=(74,)),
      method=method('trades', beta=6., attack=attack(
          'pgd', norm='linf', loss='kl', random_start=False, num_steps=10, step_size=0.007)),
      attack=dict(step_size=0.003), evaluation=dict(epsilons=(0.031,)))


def arow():
  """ARoW, ResNet-18, linf 8/255 (Yang et al. 2023)."""
  # They test the mean of the parameters after each epoch from the 51st on, this the moving average.
  return _linf(
      data=dict(mean=(0.,), std=(1.,)), train=dict(num_epochs=120., ema_decay=0.999),
      model=model('resnet18', stem='cifar'), schedule=dict(boundaries=(60, 100)),
      method=method('arow', weight=7., attack=attack(
          'pgd', **LINF_STEPS, loss='kl', num_steps=10)))


def trades_generated():
  """TRADES, 70% generated images (Wang et al. 2023)."""
  # Arrays images, [1000000, 32, 32, 3] uint8 by a diffusion model, and labels. Their attack sees
  # the network in training mode.
  return _linf(
      data=dict(mean=(0.,), std=(1.,)),
      extra=dict(name='generated.npz', share=0.7, weight=1.),
      train=dict(batch_size=512, num_epochs=400., ema_decay=0.995),
      model=model('wide_resnet', depth=28, width=10, activation='swish', form='deepmind'),
      optimizer=dict(nesterov=True, decay_all=False),
      schedule=schedule('cosine', learning_rate=0.2, warmup_epochs=10.),
      method=method('trades', beta=5., label_smoothing=0.1, attack=attack(
          'pgd', **LINF_STEPS, loss='kl', num_steps=10)))


def mart():
  """MART, ResNet-18, linf 0.031 (Wang et al. 2020)."""
  # Their code attacks from beside the image, their paper from a random start, as here.
  return _linf(
      epsilon=0.031, data=dict(mean=(0.,), std=(1.,)), train=dict(num_epochs=120.),
      model=model('resnet18', stem='cifar'), optimizer=dict(weight_decay=3.5e-3),
      schedule=dict(learning_rate=0.01, boundaries=(74, 89, 99)),
      method=method('mart', beta=5., attack=attack(
          'pgd', norm='linf', random_start=True, num_steps=10, step_size=0.007)),
      attack=dict(step_size=0.003), evaluation=dict(epsilons=(0.031,)))


def mart_wrn():
  """MART, WRN-34-10, linf 0.031 (Wang et al. 2020)."""
  config = mart()
  config.train.num_epochs = 76.
  config.model = model('wrn_34_10')
  config.optimizer.weight_decay = 2e-4
  config.schedule.update(learning_rate=0.1, boundaries=(74,))
  config.method.beta = 6.
  return config


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
