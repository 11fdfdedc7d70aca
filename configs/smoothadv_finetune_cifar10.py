r"""SmoothAdv on CIFAR-10 from a pre-trained ResNet-110 (Salman et al. 2019): 30 epochs.

  python -m launch --config=configs/smoothadv_finetune_cifar10.py \
      --workdir=runs/smoothadv_finetune_cifar10 --config.weights=WORKDIR

Learning rate 0.001 throughout, epsilon without warm-up; all else as smoothadv_cifar10. WORKDIR
(default: runs/pretrained_imagenet32) is a training on other classes, whose last layer is replaced,
such as that of ImageNet at 32x32 pixels, normalised as CIFAR-10:

  python -m launch --config=configs/gaussian_cifar10.py --workdir=runs/pretrained_imagenet32 \
      --stages=train --config.data.name=imagenet_resized/32x32 \
      --config.data.mean="(0.4914, 0.4822, 0.4465)" --config.data.std="(0.2023, 0.1994, 0.2010)"
"""

from configs import smoothadv_cifar10
from robust_jax.config.configuration import component


def get_config():
  config = smoothadv_cifar10.get_config()
  config.weights = 'runs/pretrained_imagenet32'
  config.new_head = True
  config.train.num_epochs = 30.
  config.method.epsilon_warmup_epochs = 0
  config.schedule = component('schedule', 'constant', learning_rate=0.001)
  return config
