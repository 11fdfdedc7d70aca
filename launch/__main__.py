"""Trains, attacks, certifies and reports: `python -m launch --config=configs/NAME.py`."""

import sys

from launch import command_line
from robust_jax import errors, experiment, parallel, report, stages, workdir


def main(argv):
  config, folder, chosen, redo, num_devices = command_line.parse(argv)
  config = experiment.resolve(config)
  wanted = {*chosen, *redo}
  # Attacks and certificates of parameters that are trained anew are stale.
  redo = stages.STAGES if 'train' in redo else redo
  workdir.check(folder, config, redo)
  if wanted != {'report'}:
    devices = parallel.choose_devices(num_devices, experiment.batch_sizes(config))
    run = experiment.build(config, devices)
    stages.check_training(folder, wanted, redo)
    workdir.set_aside(folder, redo)
    workdir.describe(run, folder, ' '.join(['python -m launch', *argv[1:]]))
    for stage in stages.STAGES:
      if stage in wanted:
        stages.run_stage(stage, run, folder)
  elif not workdir.stages(folder):
    raise errors.UserError(f'--workdir is {folder}, which has no results; a run that has begun is '
                           'allowed for --stages=report')
  if 'report' in wanted:
    page = report.build(folder)
    print(report.summary(folder), f'report: {page}', sep='\n')


if __name__ == '__main__':
  try:
    main(sys.argv)
  except (errors.UserError, errors.NonFiniteLossError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(error.exit_status)
  except KeyboardInterrupt:
    print('interrupted: the same command, without --redo, goes on', file=sys.stderr)
    sys.exit(130)
