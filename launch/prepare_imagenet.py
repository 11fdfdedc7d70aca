"""Prepares ImageNet: `python -m launch.prepare_imagenet TRAIN.tar VAL.tar --data_dir=DIR`.

The same as `python -m robust_jax.data prepare imagenet2012` with both tar files in one folder.
"""

from robust_jax import terminal
from robust_jax.data import __main__ as data
from robust_jax.data import imagenet_tars

if __name__ == '__main__':
  terminal.prepare()
  parser = data.Parser(prog='python -m launch.prepare_imagenet', description=__doc__)
  parser.add_argument('train', metavar='TRAIN.tar', help='ILSVRC2012_img_train.tar')
  parser.add_argument('validation', metavar='VAL.tar', help='ILSVRC2012_img_val.tar')
  parser.add_argument('--data_dir', metavar='DIR', required=True,
                      help='folder of prepared datasets; DIR/imagenet2012 is written')
  data.run(parser, lambda flags: print(imagenet_tars.prepare(**vars(flags))))
