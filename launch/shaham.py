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
  named = any(word.lstrip('-').partition('=')[0] == 'config' for word in argv[1:])
  words = argv if named else [*argv, f'--config={DEFAULT_CONFIG}']
  given = command_line.parse([*words, '--sweep', '--stages=train'])
  shaham.names([point for _, point in given.points])  # Before any of them is trained.
  redo = stages.STAGES if 'train' in given.redo else given.redo
  status = sweep.run(given.workdir, *zip(*given.points), {'train'}, redo,
                     flags=[f'--devices={given.devices}'])
  if status:
    return status
  devices = parallel.choose_devices(given.devices, [given.config.evaluation.batch_size])
  summary, page = shaham.compare(given.workdir, devices)
  print('', summary, f'report: {page}', sep='\n')
  return 0


if __name__ == '__main__':
  run(main)
