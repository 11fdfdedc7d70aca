r"""SmoothAdv on CIFAR-10 with pseudo-labelled images among its own (Salman et al. 2019).

  python -m launch --config=configs/self_training_cifar10.py \
      --workdir=runs/self_training_cifar10 --config.extra.name=FILE.npz

FILE.npz (default: pseudo_labelled.npz) has arrays images, [number, 32, 32, 3] uint8, and labels, as
the 500,000 images of Carmon et al. 2019 that a classifier of CIFAR-10 has labelled. Half of each
batch is theirs, so that an epoch is one pass through CIFAR-10 in twice as many steps; their loss
has the weight 1. Both are choices made here; all else as smoothadv_cifar10.

Without such a file: config.extra.name=DATASET and config.extra.labels=LABELS.tsv, from

  python -m robust_jax.stages.label runs/TEACHER --name=DATASET --output=LABELS.tsv
"""

from configs import smoothadv_cifar10


def get_config():
  config = smoothadv_cifar10.get_config()
  config.extra.update(name='pseudo_labelled.npz', share=0.5, weight=1.)
  return config
