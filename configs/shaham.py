"""Robust optimisation (Shaham et al. 2015): sweeps of a baseline and of l1, l2, linf networks.

  python -m launch --config=configs/shaham.py:mnist --sweep --workdir=runs/shaham_mnist

trains them and makes the paper's tables 1 and 2, its curves and its single-pixel images.

The radii in the paper are of globally standardised images. Here they are in pixel units and the
network standardises, so each is times the standard deviation of the pixels: on MNIST an l1 step
changes one pixel by 0.55 of the range from black to white. The paper has no box, and neither has
'ball_only': most pixels of MNIST are black and cannot be made darker, so that in the box less than
half of them move in a linf or l2 step.
"""

from configs import base
from configs import digits as digits_configs
from configs.base import attack, method, model, optimizer, schedule

# Standard deviation of the pixels of MNIST padded to 32x32, and of CIFAR-10.
MNIST_STD, CIFAR_STD = 0.2752, 0.2516


def digits():
  """8x8 digits, a minute or two."""
  return digits_configs.robust()


def mnist():
  """MNIST, 120 epochs (--config.train.num_epochs=3.0: short)."""
  return base.get_config(
      epsilon=0.2 * MNIST_STD,
      data=dict(name='mnist', pad=2, mean=(0.1,), std=(MNIST_STD,)),
      train=dict(batch_size=100, num_epochs=120., checkpoint_every=1200, eval_batch_size=500),
      model=model('shaham_cnn'),
      method=method('adversarial', attack=attack('fgsm', norm='linf', order='ball_only')),
      # The paper's "L2 1e-3", read as the optimiser does: the penalty is 1e-3 / 2 ||w||^2.
      optimizer=optimizer('sgd', momentum=0.9, weight_decay=1e-3),
      schedule=schedule('constant', learning_rate=0.01),
      attack=attack('fgsm', norm='linf', order='ball_only'),
      evaluation=dict(epsilons=tuple(MNIST_STD * radius for radius in (0.1, 0.2, 0.3, 0.4)),
                      stride=1, batch_size=500))


def cifar10():
  """CIFAR-10, VGG with BatchNorm and dropout, 300 epochs."""
  # Epochs and momentum are the network's author's; the radii for l1 and linf are not known here.
  return base.get_config(
      epsilon=0.2 * CIFAR_STD,
      data=dict(name='cifar10', mean=(0.4734,), std=(CIFAR_STD,)),
      train=dict(batch_size=128, num_epochs=300., checkpoint_every=1200),
      model=model('vgg'),
      method=method('adversarial', attack=attack('fgsm', norm='l2', order='ball_only')),
      optimizer=optimizer('sgd', momentum=0.9, weight_decay=5e-4),
      schedule=schedule('step', learning_rate=1., factor=0.5, boundaries=tuple(range(25, 300, 25))),
      attack=attack('fgsm', norm='l2', order='ball_only'),
      evaluation=dict(epsilons=tuple(CIFAR_STD * radius for radius in (0.1, 0.2, 0.3, 0.4)),
                      stride=1, batch_size=512))


# What a finished sweep is for (robust_jax.studies).
STUDY = 'shaham'
SWEEPS = {
    'digits': digits_configs.SWEEPS['robust'],
    'mnist': [{'method': method('standard')},
              {'method.attack.norm': 'l1', 'epsilon': 2 * MNIST_STD},
              {'method.attack.norm': 'l2', 'epsilon': 2 * MNIST_STD},
              {'method.attack.norm': 'linf', 'epsilon': 0.2 * MNIST_STD}],
    'cifar10': [{'method': method('standard')}, {'method.attack.norm': 'l2'}],
}


def get_config(name='digits'):
  return base.experiment(globals(), name)


def sweep(name='digits'):
  return SWEEPS[name]
