"""Shaham et al.'s experiment: `python -m launch.shaham --config=configs/shaham.py:mnist`.

It trains the networks of the config's sweep(), a baseline and robust ones, as `python -m launch
--sweep --stages=train` does, and compares them: see `robust_jax.studies.shaham`. The same command
goes on where it was interrupted.

  python -m launch.shaham [--config=configs/FILE.py:NAME] [--config.FIELD=VALUE ...]
                          [--workdir=DIR] [--redo=train] [--devices=N] [--profile=STEPS]
"""

from launch import flags, process, sweep
from robust_jax import backend, stages
from robust_jax.devices.choose import choose_devices
from robust_jax.errors import UserError
from robust_jax.studies import shaham

DEFAULT_CONFIG = 'configs/shaham.py'


def main(argv):
  given_flags = [word.lstrip('-').partition('=')[0] for word in argv[1:] if word.startswith('-')]
  if 'help' in given_flags:
    print(__doc__.strip())
    return 0
  for flag in ('stages', 'sweep'):
    if flag in given_flags:
      raise UserError(f'command line: --{flag} is no flag of this experiment, which trains and '
                      'compares; --config, --config.FIELD, --workdir, --redo, --devices, '
                      '--profile are allowed')
  words = argv if 'config' in given_flags else [*argv, f'--config={DEFAULT_CONFIG}']
  given = flags.parse([*words, '--sweep', '--stages=train'])
  shaham.names([point for _, point in given.points])  # Before any of them is trained.
  redo = stages.KEPT if 'train' in given.redo else given.redo
  status = sweep.run(given.workdir, *zip(*given.points), {'train'}, redo,
                     flags=[f'--devices={given.devices}'], compared=False)
  if status:
    return status
  backend.tune()
  devices = choose_devices(given.devices, [given.config.evaluation.batch_size])
  summary, page = shaham.compare(given.workdir, devices)
  print('', summary, f'report: {page}', sep='\n')
  return 0


if __name__ == '__main__':
  process.run(main)
