"""scikit-learn's 8x8 digits: every method in a minute or two on a laptop. See docs/methods.md."""

from configs import base
from configs.base import attack, method, model, optimizer, schedule

DIGITS = dict(
    data=dict(name='digits'),
    train=dict(batch_size=64, num_epochs=20., log_every=23),
    model=model('cnn', widths=(16, 32), kernel_size=3, dense=64),
    schedule=schedule('cosine', learning_rate=0.1, warmup_epochs=1.))
L2_STEPS = dict(norm='l2', random_start=False, num_steps=2, step_ratio=2., order='box_then_ball')
L2_PGD = attack('pgd', **L2_STEPS)
LINF_STEPS = dict(norm='linf', num_steps=10, step_ratio=2., random_start=True)


def _smoothed(**changes):
  """A classifier smoothed by sigma 0.25, attacked in l2 and certified."""
  return base.get_config(DIGITS, dict(
      sigma=0.25,
      train=dict(eval_every_epochs=2.),
      attack=attack('pgd', norm='l2', random_start=False, num_steps=20, step_ratio=2.),
      evaluation=dict(stride=3, num_noise=16, epsilons=(0.25, 0.5, 0.75, 1.)),
      certify=dict(n=10_000), sandwich=dict(num_noise=32, num_steps=20)), **changes)


def _attacked(name='smoothadv', inner=L2_PGD, **fields):
  """A smoothed classifier by a method that attacks within l2 0.5, warmed up in 5 epochs."""
  return _smoothed(epsilon=0.5, method=method(name, epsilon_warmup_epochs=5, attack=inner,
                                              **fields))


def _linf(**changes):
  """A classifier without noise, 40 epochs, attacked in linf."""
  return base.get_config(DIGITS, dict(
      epsilon=0.1,
      train=dict(num_epochs=40., eval_every_epochs=4.),
      attack=attack('pgd', norm='linf', num_steps=20, random_start=True),
      evaluation=dict(stride=1, num_noise=16, epsilons=(0.05, 0.1, 0.15, 0.2)),
      certify=dict(n=10_000)), **changes)


def _l2(**changes):
  """A classifier without noise, attacked in l2."""
  return base.get_config(DIGITS, dict(
      train=dict(eval_every_epochs=5.),
      attack=attack('pgd', norm='l2', num_steps=20, random_start=True),
      evaluation=dict(stride=1, epsilons=(0.25, 0.5, 0.75, 1.))), **changes)


def smoothadv():
  """SmoothAdv, l2 0.5, sigma 0.25; its sweep: three seeds."""
  return _attacked(num_noise=2)


def smoothadv_ddn():
  """SmoothAdv with DDN as its attack."""
  # Its sphere begins at the warmed-up epsilon (init_norm=0), as in the authors' training.
  return _attacked(inner=attack('ddn', num_steps=4, init_norm=0., gamma=0.05), num_noise=2)


def smoothadv_gradient_free():
  """SmoothAdv by Stein's estimate instead of gradients."""
  # Of 8 noises it is mostly minus their mean: the attack is hardly better than a random direction,
  # and takes a part of the noise away.
  return _attacked(inner=attack('pgd', **L2_STEPS, smoothed_objective='gradient_free'),
                   num_noise=8)


def noise_beside_attack():
  """Half the loss on attacked, half on noisy images."""
  return _attacked('noisy_adversarial', order='beside')


def attack_then_noise():
  """Attack of the base classifier, then noise."""
  return _attacked('noisy_adversarial', order='attack_then_noise')


def noise_then_attack():
  """Noise, then an attack: SmoothAdv with one noise."""
  return _attacked(num_noise=1)


def self_training():
  """SmoothAdv on 300 labelled, 1,142 pseudo-labelled images."""
  config = smoothadv()
  config.data.train_split = 'train[:300]'
  config.extra.update(name='digits', split='train[300:]', share=0.5, weight=0.5,
                      labels='runs/self_training_digits.tsv')
  config.train.num_epochs = 40.
  return config


def iaat_smoothadv():
  """SmoothAdv, an l2 radius for each image (unpublished)."""
  return _smoothed(method=method(
      'iaat_smoothadv', num_noise=2, gamma=0.1, warmup_epochs=5, warmup_epsilon=0.5,
      attack=L2_PGD))


def gaussian():
  """Gaussian augmentation, sigma 0.25."""
  return _smoothed(method=method('gaussian'))


def stability():
  """Stability training, sigma 0.25."""
  # The second term is least where all images are given one class, and at first training goes that
  # way: a smaller learning rate and more epochs than the others.
  return _smoothed(method=method('stability', weight=2.), schedule=dict(learning_rate=0.03),
                   train=dict(num_epochs=40., eval_every_epochs=4.))


def consistency():
  """Consistency regularisation, sigma 0.25."""
  return _smoothed(method=method(
      'consistency', num_noise=2, weight=5., eta=0.5, attack=attack('none')))


def consistency_smoothadv():
  """Consistency regularisation with SmoothAdv's attack."""
  return _attacked('consistency', num_noise=2, weight=5., eta=0.5)


def smoothmix():
  """SmoothMix, sigma 0.25."""
  return _smoothed(epsilon=1., method=method('smoothmix', warmup_epochs=5, attack=attack(
      'pgd', norm='l2', random_start=False, num_steps=2, step_ratio=1.)))


def catrs():
  """CAT-RS, sigma 0.25, by votes of another network."""
  return _smoothed(epsilon=0.5, data=dict(targets_file='runs/votes_digits.npy'),
                   method=method('catrs', weight=0.5))


def macer():
  """MACER, sigma 0.25."""
  # With the published weight 4 and learning rate 0.1, one seed of three ended at 19% accuracy.
  return _smoothed(method=method('macer', num_noise=8, weight=1., start_epoch=5),
                   schedule=dict(learning_rate=0.05))


def pgd():
  """Adversarial training, PGD-10, linf 0.1."""
  return _linf(method=method('adversarial', attack=attack('pgd', **LINF_STEPS)))


def pgd_restarts():
  """PGD training, worst of four starts, 30% clean loss."""
  return _linf(method=method('adversarial', clean_share=0.3,
                             attack=attack('pgd', **LINF_STEPS, restarts=4)))


def pgd_targeted():
  """PGD training towards a random other class."""
  return _linf(method=method('adversarial', attack=attack(
      'pgd', **LINF_STEPS, target='random', loss='logit_gap')))


def trades():
  """TRADES, linf 0.1."""
  return _linf(method=method('trades', beta=6., attack=attack(
      'pgd', norm='linf', loss='kl', random_start=False, num_steps=10, step_ratio=2.5)))


def mart():
  """MART, linf 0.1."""
  return _linf(method=method('mart', beta=5., attack=attack('pgd', **LINF_STEPS)))


def arow():
  """ARoW, linf 0.1."""
  return _linf(method=method('arow', attack=attack(
      'pgd', norm='linf', loss='kl', random_start=True, num_steps=10, step_ratio=2.5)))


def fast():
  """Fast adversarial training: RS-FGSM, linf 0.1."""
  return _linf(train=dict(on_overfitting='warn'), method=method('adversarial', attack=attack(
      'pgd', norm='linf', num_steps=1, step_ratio=1.25, random_start=True)))


def n_fgsm():
  """N-FGSM, linf 0.1."""
  return _linf(train=dict(on_overfitting='warn'), method=method('n_fgsm'))


def awp():
  """PGD training with adversarial weight perturbation."""
  config = pgd()
  config.train.awp = 0.01
  return config


def sam():
  """Sharpness-aware minimisation of the clean loss."""
  return _linf(train=dict(sam=0.05), method=method('standard'))


def iaat():
  """IAAT, an linf radius for each image."""
  # Published: warm-up of ten epochs at 8/255. Here margins are larger, and epochs fewer.
  return _linf(epsilon=0., method=method('iaat', gamma=0.05, warmup_epochs=5, warmup_epsilon=0.1,
                                         attack=attack('pgd', **LINF_STEPS, min_step_size=0.01)))


def robust():
  """Robust optimisation, one linf step; sweep: l1, l2, linf."""
  return base.get_config(
      DIGITS, epsilon=0.1, train=dict(eval_every_epochs=5.),
      method=method('adversarial', attack=attack('fgsm', norm='linf', order='ball_only')),
      attack=attack('pgd', norm='linf', num_steps=20, random_start=True),
      evaluation=dict(stride=1, epsilons=(0.05, 0.1, 0.15, 0.2)))


def tangent():
  """Robust optimisation in the tangent space of the data."""
  return _l2(epsilon=1., data=dict(tangents=8), method=method('tangent'))


def tangent_penalty():
  """A penalty on the derivatives along tangents."""
  return _l2(data=dict(tangents=8), method=method('tangent_penalty', weight=0.1))


def jacobian():
  """A penalty on the Jacobian (Gu & Rigazio 2014)."""
  return _l2(method=method('jacobian_penalty', weight=0.1))


def vat():
  """Virtual adversarial training (Miyato et al. 2016)."""
  return _l2(epsilon=1., method=method('vat'))


def _provable(name, epsilon=0.1, network=DIGITS['model'], **fields):
  """Bounds are trained in linf, to a radius that grows in the epochs 2 to 11."""
  return _linf(
      epsilon=epsilon, model=network,
      train=dict(num_epochs=20.), optimizer=optimizer('adam', clip_norm=10.),
      schedule=dict(learning_rate=0.005), evaluation=dict(epsilons=(0.05, 0.1)),
      method=method(name, warmup_epochs=1., ramp_epochs=10., **fields))


def ibp():
  """Intervals (Gowal et al. 2018), linf 0.1."""
  return _provable('ibp')


def crown_ibp():
  """CROWN-IBP (Zhang et al. 2020), linf 0.1."""
  return _provable('crown_ibp')


def wong_kolter():
  """The dual of Wong and Kolter (2018), linf 0.05."""
  # A bound of every hidden unit: a small network, and for it a small radius.
  return _provable('wong_kolter', epsilon=0.05, network=model('mlp', hidden=(32,)))


def sabr():
  """Intervals of small boxes (Mueller et al. 2023), linf 0.1."""
  return _provable('sabr', size=0.6, attack=attack('pgd', **LINF_STEPS))


def mtl_ibp():
  """Intervals and attacked images (De Palma et al. 2024)."""
  return _provable('mtl_ibp', attack=attack('pgd', norm='linf', num_steps=1, step_ratio=10.,
                                            random_start=True))


SWEEPS = {
    'smoothadv': [{'seed': seed} for seed in range(3)],
    'robust': [{'method': method('standard')},
               {'method.attack.norm': 'l1', 'epsilon': 1.},
               {'method.attack.norm': 'l2', 'epsilon': 0.75},
               {'method.attack.norm': 'linf', 'epsilon': 0.1}],
}


def get_config(name='smoothadv'):
  return base.experiment(globals(), name)


def sweep(name='smoothadv'):
  return SWEEPS.get(name, [])
