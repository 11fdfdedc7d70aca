"""What is measured: tasks, networks, their sizes, and who competes. No frameworks here."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

TASKS = ('pgd10', 'train', 'smoothadv', 'certify')


class Model(NamedTuple):
  """A network and the images that it takes.

  Attributes:
    side: height and width of the images, in pixels.
    channels: of the images.
    num_classes: number of logits.
    mean, std: input normalisation, one number a channel, in [0, 1] pixel units.
  """

  side: int
  channels: int
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]

  @property
  def image_shape(self):
    return self.side, self.side, self.channels


_CIFAR = Model(32, 3, 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
MODELS = {
    'lenet': Model(28, 1, 10, (0.,), (1.,)),
    'resnet20': _CIFAR,
    'resnet110': _CIFAR,
    'wrn_28_10': _CIFAR,
    'resnet50': Model(224, 3, 1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Work(NamedTuple):
  """One line of the results: a task, a network and their sizes.

  Attributes:
    task: of `TASKS`.
    model: of `MODELS`.
    batch: images of one call; for 'certify' rows of a forward pass.
    num_steps: ascent steps of the attack.
    num_noise: noises an image of 'smoothadv', m.
    num_images: images of one call of 'certify'.
    num_draws: draws of each of them.
    epsilon: radius of the attack in pixel units: linf for 'pgd10', l2 for 'smoothadv'.
    sigma: standard deviation of the noise in pixel units.
    checks_training: whether the check of a training step, which compiles another one, is made.
    num_devices: of ours, as `--devices` of the launcher; 0: it chooses.
  """

  task: str
  model: str
  batch: int
  num_steps: int = 0
  num_noise: int = 0
  num_images: int = 0
  num_draws: int = 0
  epsilon: float = 0.
  sigma: float = 0.
  checks_training: bool = False
  num_devices: int = 0

  @property
  def items(self):
    """Images, or draws, of one call."""
    return self.num_images * self.num_draws if self.task == 'certify' else self.batch

  @property
  def unit(self):
    return 'draws/s' if self.task == 'certify' else 'images/s'

  @property
  def label(self):
    """The task, with what distinguishes the lines of one task."""
    return (f'smoothadv m={self.num_noise} T={self.num_steps}' if self.task == 'smoothadv'
            else self.task)


class Contestant(NamedTuple):
  """One way of doing the work.

  Attributes:
    kind: 'ours', 'torch' or the package that does it.
    precision: what matrix products are computed in: 'float32', 'tf32' or 'bfloat16'.
    layout: of PyTorch's tensors: 'channels_last' or 'contiguous' (NCHW).
    compiled: by torch.compile.
    malloc: 'glibc' told to keep freed memory, as `robust_jax.cpu.process` tells it, which makes
      PyTorch faster too; 'jemalloc' as `make demo` has it, where it is installed; '' neither.
    says: what it is, for people.
  """

  kind: str
  precision: str
  layout: str = 'contiguous'
  compiled: bool = False
  malloc: str = ''
  says: str = ''


_LIBRARIES = {
    'torchattacks': 'torchattacks, NCHW',
    'foolbox': 'foolbox, NCHW',
    'art': 'adversarial-robustness-toolbox, NCHW',
}
CONTESTANTS = {
    'cpu': {
        'ours': Contestant('ours', 'float32', malloc='jemalloc',
                           says='robust_jax, with jemalloc where it is installed'),
        'ours-glibc': Contestant('ours', 'float32', says="robust_jax with glibc's malloc"),
        'torch': Contestant('torch', 'float32', 'channels_last', malloc='glibc',
                            says='PyTorch, channels-last, freed memory kept'),
        'torch-nchw': Contestant('torch', 'float32', malloc='glibc',
                                 says='PyTorch, NCHW, freed memory kept'),
        'torch-jemalloc': Contestant('torch', 'float32', 'channels_last', malloc='jemalloc',
                                     says='PyTorch, channels-last, jemalloc'),
        'torch-plain': Contestant('torch', 'float32',
                                  says='PyTorch, NCHW, as it is used by most'),
        'torch-compile': Contestant(
            'torch', 'float32', 'channels_last', compiled=True, malloc='glibc',
            says='PyTorch, channels-last, torch.compile, freed memory kept'),
        **{name: Contestant(name, 'float32', says=says) for name, says in _LIBRARIES.items()},
    },
    'gpu': {
        'ours': Contestant('ours', 'tf32', malloc='jemalloc',
                           says='robust_jax as launched (TF32 products)'),
        'ours-float32': Contestant('ours', 'float32', malloc='jemalloc',
                                   says='robust_jax, float32 products'),
        'ours-bf16': Contestant('ours', 'bfloat16', malloc='jemalloc',
                                says='robust_jax, model.dtype=bfloat16'),
        **{f'torch{suffix}{name}': Contestant('torch', precision, layout, compiled,
                                              says=f'PyTorch, {says}, {precision}')
           for name, precision in (('', 'tf32'), ('-float32', 'float32'), ('-bf16', 'bfloat16'))
           for suffix, layout, compiled, says in (
               ('', 'channels_last', False, 'channels-last'),
               ('-nchw', 'contiguous', False, 'NCHW'),
               ('-compile', 'channels_last', True, 'channels-last, torch.compile'))},
        **{name: Contestant(name, 'tf32', says=says) for name, says in _LIBRARIES.items()},
    },
}
# What runs without being asked for. On CPU torch.compile takes a minute a line and a C++ compiler.
DEFAULT_CONTESTANTS = {
    'cpu': [name for name in CONTESTANTS['cpu'] if name != 'torch-compile'],
    'gpu': list(CONTESTANTS['gpu']),
}
# The tasks that a library has a public function for.
LIBRARY_TASKS = {'torchattacks': ('pgd10',), 'foolbox': ('pgd10',), 'art': ('pgd10', 'certify')}
PACKAGES = {
    'ours': ('jax', 'flax', 'optax'),
    'torch': ('torch',),
    'torchattacks': ('torch', 'torchattacks'),
    'foolbox': ('torch', 'foolbox'),
    'art': ('torch', 'adversarial-robustness-toolbox'),
}


class Sizes(NamedTuple):
  """Batches of one model: images a call of each task; certification's rows of a pass, which are
  the draws of an image as well, and its images."""

  pgd10: int
  train: int
  smoothadv: int
  certify: tuple[int, int]


# LeNet and ResNet-20 as in configs/; the larger networks so that a GPU is filled.
SIZES = {
    'cpu': {
        'lenet': Sizes(256, 256, 64, (1000, 4)),
        'resnet20': Sizes(128, 128, 32, (400, 2)),
    },
    'gpu': {
        'resnet110': Sizes(1024, 256, 128, (4096, 8)),
        'wrn_28_10': Sizes(512, 128, 64, (2048, 4)),
        'resnet50': Sizes(128, 128, 32, (512, 8)),
        'resnet20': Sizes(2048, 1024, 256, (16384, 8)),
    },
}
DEFAULT_MODELS = {'cpu': ['lenet', 'resnet20'], 'gpu': ['resnet110', 'wrn_28_10', 'resnet50']}
NOISES = (1, 2, 4, 8)
STEPS = (2, 10)
_QUICK = Sizes(4, 4, 4, (8, 2))
# Radius of PGD in linf, by channels of the images; of SmoothAdv in l2, with its noise.
_LINF = {1: 0.3, 3: 8 / 255}
L2, SIGMA = 1.0, 0.5


def plan(suite, models, tasks, noises=NOISES, steps=STEPS, quick=False):
  """The Works of a suite, in the order in which they are measured.

  Args:
    suite: 'cpu' or 'gpu'.
    models, tasks: names.
    noises, steps: m and T of the smoothadv lines.
    quick: tiny batches, for tests.
  """
  works = []
  for model in models:
    sizes = _QUICK if quick else SIZES[suite][model]
    for task in tasks:
      if task == 'pgd10':
        works.append(Work(task, model, sizes.pgd10, num_steps=10,
                          epsilon=_LINF[MODELS[model].channels]))
      elif task == 'train':
        works.append(Work(task, model, sizes.train, checks_training=True))
      elif task == 'smoothadv':
        # One line's check stands for all: they differ in two numbers.
        checked = (noises[min(1, len(noises) - 1)], steps[0])
        works += [Work(task, model, sizes.smoothadv, num_steps, num_noise, epsilon=L2, sigma=SIGMA,
                       checks_training=(num_noise, num_steps) == checked)
                  for num_steps in steps for num_noise in noises]
      else:
        batch, num_images = sizes.certify
        works.append(Work(task, model, batch, num_images=num_images, num_draws=batch, sigma=SIGMA))
  return works


def batch(work):
  """Always the same (images [rows, height, width, channel] in [0, 1], labels [rows] int32).

  For 'certify' the rows are the images to certify.
  """
  model, rows = MODELS[work.model], work.num_images or work.batch
  rng = np.random.default_rng(1)
  return (rng.random((rows, *model.image_shape), np.float32),
          rng.integers(0, model.num_classes, rows).astype(np.int32))


class Job(NamedTuple):
  """A contestant that is ready for its work.

  Attributes:
    call: does the work once, but need not wait for the device.
    wait: returns when what was called is done.
    check: () -> {name: array}, which should be the same for all contestants: 'logits'; images
      after PGD's 'first_step' and all of them ('adversarial'), and the mean loss there
      ('adversarial_loss'); 'loss' of a training step without noise, and 'trained_logits' after it;
      'counts' of votes without noise.
    memory: () -> the most bytes of device memory in use so far; None on CPU.
    about: what the results should say of it: flags, devices.
  """

  call: Callable
  wait: Callable
  check: Callable
  memory: Callable
  about: dict
