r"""SmoothAdv on ImageNet: configs/imagenet.py:smoothadv.

  python -m launch --config=configs/smoothadv_imagenet.py --workdir=runs/smoothadv_imagenet \
      --config.data.data_dir=DIR
"""

from configs import imagenet

get_config = imagenet.smoothadv
