"""Shaham et al.'s experiment: `python -m launch.shaham --config=configs/shaham_mnist.py`.

It trains the networks of the config's sweep(), a baseline and robust ones, as `python -m launch
--sweep --stages=train` does and with the same flags, and compares them: see
`robust_jax.studies.shaham`. The same command goes on where it was interrupted.
"""

from launch import command_line, sweep
from launch.__main__ import run
from robust_jax import parallel, stages
from robust_jax.studies import shaham

DEFAULT_CONFIG = 'configs/robust_digits.py'


def main(argv):
  given = any(word.lstrip('-').partition('=')[0] == 'config' for word in argv[1:])
  words = argv if given else [*argv, f'--config={DEFAULT_CONFIG}']
  config, folder, _, redo, num_devices, points = command_line.parse(
      [*words, '--sweep', '--stages=train'])
  shaham.names([point for _, point in points])  # Before any of them is trained.
  redo = stages.STAGES if 'train' in redo else redo
  status = sweep.run(folder, *zip(*points), {'train'}, redo, flags=[f'--devices={num_devices}'])
  if status:
    return status
  devices = parallel.choose_devices(num_devices, [config.evaluation.batch_size])
  summary, page = shaham.compare(folder, devices)
  print('', summary, f'report: {page}', sep='\n')
  return 0


if __name__ == '__main__':
  run(main)
