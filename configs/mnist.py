"""MNIST: LeNet by the protocol of the Consistency authors, and others' protocols."""

from configs import base
from configs.base import attack, method, model, optimizer, schedule

# Box last, and normalised gradients, as the Consistency authors' SmoothAdv.
L2_STEPS = dict(norm='l2', random_start=False, num_steps=10, step_ratio=2., order='ball_then_box')
LINF_STEPS = dict(norm='linf', num_steps=40, step_size=0.01, random_start=True)
# Of CTBench's training attacks, whose one step goes to a corner of the ball.
CORNER = attack('pgd', norm='linf', num_steps=1, step_ratio=10., random_start=True)


def _lenet(**changes):
  """Jeong & Shin 2020: LeNet, sigma 0.5, 90 epochs."""
  return base.get_config(dict(
      sigma=0.5,
      data=dict(name='mnist'),
      train=dict(batch_size=256, num_epochs=90.),
      model=model('lenet'),
      # x0.1 every 30 epochs; their schedule drops one epoch late.
      schedule=schedule('step', learning_rate=0.01, boundaries=(31, 61)),
      attack=attack('pgd', norm='l2', random_start=False, num_steps=20, step_ratio=2.),
      evaluation=dict(epsilons=(0.25, 0.5, 0.75, 1., 1.25, 1.5, 1.75), stride=100)), **changes)


def _adam(*protocols, **changes):
  """A classifier without noise, trained by Adam; every tenth test image is attacked, in linf."""
  return base.get_config(dict(
      data=dict(name='mnist'),
      train=dict(checkpoint_every=1200, eval_batch_size=500),
      optimizer=optimizer('adam'),
      attack=attack('pgd', **LINF_STEPS, restarts=5),
      evaluation=dict(epsilons=(0.1, 0.2, 0.3), stride=10, batch_size=250)), *protocols, **changes)


def smoothadv():
  """SmoothAdv, LeNet, l2 255/256, sigma 0.5."""
  return _lenet(epsilon=255 / 256, method=method(
      'smoothadv', num_noise=4, epsilon_warmup_epochs=10, attack=attack('pgd', **L2_STEPS)))


def gaussian():
  """Gaussian augmentation, LeNet, sigma 0.5."""
  return _lenet(method=method('gaussian'))


def stability():
  """Stability training, LeNet, sigma 0.5."""
  return _lenet(method=method('stability', weight=2.))


def consistency():
  """Consistency regularisation, LeNet, sigma 0.5."""
  # The authors' weight is 10 at sigma 0.25.
  return _lenet(method=method(
      'consistency', num_noise=2, weight=5., eta=0.5, attack=attack('none')))


def consistency_smoothadv():
  """Consistency with SmoothAdv's attack, LeNet, sigma 0.5."""
  return _lenet(epsilon=255 / 256, method=method(
      'consistency', num_noise=4, weight=5., eta=0.5, epsilon_warmup_epochs=10,
      attack=attack('pgd', **L2_STEPS)))


def smoothmix():
  """SmoothMix, LeNet, sigma 0.5 (Jeong et al. 2021)."""
  # Steps of length 1; the authors take 2 at sigma 0.25 and 8 at sigma 1.
  return _lenet(epsilon=4., train=dict(batch_size=64), method=method(
      'smoothmix', num_noise=4, weight=5., attack=attack(
          'pgd', norm='l2', random_start=False, num_steps=4, step_ratio=1.)))


def macer():
  """MACER, LeNet, sigma 0.5."""
  # From the 32nd epoch on. The authors' weight is 6 at sigma 1.
  return _lenet(method=method(
      'macer', num_noise=16, weight=16., beta=16., gamma=8., start_epoch=31))


def standard():
  """Training without defence, LeNet."""
  return _lenet(sigma=0., method=method('standard'), evaluation=dict(stride=10, batch_size=256))


def certify():
  """Certifies a trained LeNet at radii 0.25 to 1.5.

  config.weights is the workdir of a training by any method, or a file of PyTorch weights, and
  config.sigma its noise. Every 20th test image is drawn for until each radius is decided, at most
  100,000 times; --stages=verify then does it all again (--config.verify.sample=20: for 20 images).
  """
  config = smoothadv()
  config.certify = base.certify('sequential', radii=(0.25, 0.5, 0.75, 1., 1.25, 1.5),
                                indifference=0.01)
  config.certify_images.stride = 20
  return config


def pgd():
  """Adversarial training, PGD-40, linf 0.3 (Madry et al.)."""
  return _adam(
      epsilon=0.3,
      train=dict(batch_size=50, num_epochs=84., num_steps=100_000),
      model=model('cnn', widths=(32, 64), kernel_size=5, dense=1024),
      method=method('adversarial', attack=attack('pgd', **LINF_STEPS)),
      schedule=schedule('constant', learning_rate=1e-4))


def autoattack():
  """AutoAttack at linf 0.3, all test images.

  config.weights is the workdir of a training, as of pgd, or a file of PyTorch weights, with
  --stages=attack,report; without it the network is first trained as by pgd.
  """
  config = pgd()
  config.attack = attack('autoattack', norm='linf', version='standard')
  config.evaluation.update(epsilons=(0.3,), stride=1)
  return config


def iaat():
  """IAAT, small network, half an hour (unpublished)."""
  return _adam(
      train=dict(batch_size=128, num_epochs=15., checkpoint_every=469, eval_batch_size=512),
      model=model('cnn', widths=(16, 32), kernel_size=5, dense=128),
      method=method('iaat', gamma=0.025, warmup_epochs=2, warmup_epsilon=0.1, attack=attack(
          'pgd', norm='linf', num_steps=10, step_ratio=2., min_step_size=0.01, random_start=True)),
      schedule=schedule('constant', learning_rate=1e-3))


def vat():
  """Virtual adversarial training, l2 2.1 (Miyato et al.)."""
  # As the authors' code, whose network has BatchNorm as well.
  return _adam(
      epsilon=2.1,
      train=dict(batch_size=100, num_epochs=100.),
      model=model('mlp', hidden=(1200, 600, 300, 150)),
      method=method('vat'),
      schedule=schedule('step', learning_rate=0.002, factor=0.9, boundaries=tuple(range(1, 100))),
      attack=attack('pgd', norm='l2', num_steps=20, random_start=True),
      evaluation=dict(epsilons=(0.5, 1., 1.5, 2.)))


def _provable(epsilon, **changes):
  """A network whose bounds are trained in linf; a tenth of the test images is attacked."""
  return _adam(dict(
      epsilon=epsilon, evaluation=dict(epsilons=(epsilon,)),
      train=dict(batch_size=128, eval_every_epochs=5.)), **changes)


def _gowal(epsilon, trained):
  """Gowal et al. 2018: 100 epochs, of which 3.3 are clean and the radius grows for 16.7."""
  return _provable(
      epsilon, train=dict(batch_size=100, num_epochs=100.), model=model('ibp_cnn', size='large'),
      method=method('ibp', epsilon=trained, warmup_epochs=10 / 3, ramp_epochs=50 / 3),
      schedule=schedule('step', learning_rate=1e-3, boundaries=(25, 42)))


def ibp_01():
  """IBP, linf 0.1, large network (Gowal et al. 2018)."""
  return _gowal(0.1, 0.2)


def ibp_03():
  """IBP, linf 0.3, large network (Gowal et al. 2018)."""
  return _gowal(0.3, 0.4)


def _small(epsilon, name, **fields):
  """A small network and 20 epochs, for two CPU cores."""
  return _provable(
      epsilon, train=dict(num_epochs=20.), model=model('ibp_cnn', size='small', initialise='ibp'),
      method=method(name, warmup_epochs=1., ramp_epochs=9., regularizer=0.5, **fields),
      optimizer=dict(clip_norm=10.),
      schedule=schedule('step', learning_rate=2e-3, boundaries=(14, 18), factor=0.2))


def ibp_small_01():
  """IBP, linf 0.1, small network, minutes (unpublished)."""
  return _small(0.1, 'ibp')


def ibp_small_03():
  """IBP, linf 0.3, small network, minutes (unpublished)."""
  return _small(0.3, 'ibp')


def _ctbench(epsilon, name, trained=None, l1=0., **fields):
  """CTBench: 70 epochs, of which the radius grows in the first 20."""
  # Theirs: at the end of each epoch BatchNorm's statistics anew, of all training images.
  return _provable(
      epsilon, train=dict(batch_size=256, num_epochs=70.), model=model('cnn7'),
      method=method(name, epsilon=trained, ramp_epochs=20., ramp='smooth', regularizer=0.5,
                    **fields),
      optimizer=dict(clip_norm=10., l1=l1, decay_all=False),
      schedule=schedule('step', learning_rate=5e-4, boundaries=(50, 60), factor=0.2))


def ctbench_ibp_03():
  """IBP, linf 0.3, 7 layers with BatchNorm (CTBench)."""
  return _ctbench(0.3, 'ibp', l1=2e-6, kappa_start=0.3, kappa_end=0.3)


def sabr_03():
  """SABR, linf 0.3, 7 layers with BatchNorm (CTBench)."""
  return _ctbench(0.3, 'sabr', l1=2e-6, size=0.9, attack=attack(
      'pgd', norm='linf', num_steps=5, random_start=True, restarts=3))


def mtl_ibp_03():
  """MTL-IBP, linf 0.3, 7 layers with BatchNorm (CTBench)."""
  return _ctbench(0.3, 'mtl_ibp', l1=1e-6, alpha=0.5, attack=CORNER)


def mtl_ibp_01():
  """MTL-IBP, linf 0.1 by 0.2 (De Palma et al. 2024)."""
  return _ctbench(0.1, 'mtl_ibp', trained=0.2, l1=1e-5, alpha=0.01, attack=CORNER)


def crown_ibp_03():
  """CROWN-IBP, linf 0.3 by 0.4 (Zhang et al. 2020)."""
  config = _gowal(0.3, 0.4)
  config.train.update(batch_size=256, num_epochs=200.)
  config.method = method('crown_ibp', epsilon=0.4, warmup_epochs=9., ramp_epochs=51.)
  config.schedule.update(learning_rate=5e-4, boundaries=(130, 190))
  return config


def crown_ibp_small_03():
  """CROWN-IBP, linf 0.3, small network (unpublished)."""
  return _small(0.3, 'crown_ibp')


def get_config(name='smoothadv'):
  return base.experiment(globals(), name)
