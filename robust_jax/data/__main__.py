"""Published datasets without TensorFlow: `python -m robust_jax.data prepare NAME`.

  prepare    one file NAME.npz, for --config.data.name=NAME.npz, of the files as published;
             of imagenet2012 and imagenet_resized a folder in DIR, for --config.data.data_dir=DIR
"""

import argparse
import inspect
import os
import sys

from robust_jax import terminal
from robust_jax.data import prepare as preparing
from robust_jax.errors import UserError

EXAMPLES = ('prepare cifar10', 'prepare cifar10 --source=cifar-10-python.tar.gz',
            'prepare mnist --source=~/downloads/mnist --output=data/mnist.npz',
            'prepare imagenet2012 --source=FOLDER --output=DIR',
            'prepare imagenet_resized/64x64 --source=FOLDER --output=DIR')


class Parser(argparse.ArgumentParser):
  """Mistakes are one line, as everywhere else."""

  def error(self, message):
    raise UserError(f'{message}; see {self.prog} --help')


def make_parser():
  layout = argparse.RawDescriptionHelpFormatter
  parser = Parser(prog='python -m robust_jax.data', description=__doc__, formatter_class=layout,
                  allow_abbrev=False, epilog='COMMAND --help has its options and examples.')
  commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True,
                                   help=argparse.SUPPRESS)
  examples = ''.join(f'\n  {parser.prog} {words}' for words in EXAMPLES)
  command = commands.add_parser('prepare', description=inspect.getdoc(prepare), allow_abbrev=False,
                                epilog=f'examples:{examples}', formatter_class=layout)
  command.set_defaults(run=prepare)
  command.add_argument('name', choices=preparing.NAMES, metavar='NAME',
                       help=f'one of {", ".join(preparing.NAMES)}')
  command.add_argument('--source', metavar='PATH', type=os.path.expanduser,
                       help='file or folder of the dataset; downloaded if not given')
  command.add_argument('--output', metavar='FILE', type=os.path.expanduser,
                       help='what is written; NAME.npz in this folder if not given; of '
                            "imagenet2012 and imagenet_resized DIR, TFDS's own if not given")
  return parser


def prepare(flags):
  """Writes a published dataset into one file .npz of arrays, in the order that it was published in.

  --source is CIFAR's archive for Python, for C or for Matlab, MNIST's four files (.gz or unpacked),
  SVHN's two .mat files, or a .npz as Keras has it; a folder is searched for these. No code in them
  is executed. Without --source they are downloaded, and compared with their published MD5.

  imagenet2012 is written as TFDS has it, from a folder with ILSVRC2012_img_train.tar and
  ILSVRC2012_img_val.tar, by all cores. The same command goes on after an interruption.

  imagenet_resized/8x8, 16x16, 32x32 and 64x64 are written from a folder with image-net.org's
  Imagenet64_train_part1.zip and so on, or the same with _npz, packed or not. Labels and classes
  are those of TFDS.
  """
  print(preparing.prepare(flags.name, flags.source, flags.output))


def main(argv=None):
  run(make_parser(), lambda flags: flags.run(flags), argv)


def run(parser, function, argv=None):
  """Calls a function of the flags; a mistake is one line."""
  try:
    function(parser.parse_args(argv))
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(error.exit_status)


if __name__ == '__main__':
  terminal.prepare()
  main()
