"""Trains, attacks, certifies and reports: `python -m launch --config=configs/NAME.py`."""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from robust_jax import errors, experiment, parallel, report, stages, workdir

STAGES = [*stages.STAGES, 'report']
CONFIG = config_flags.DEFINE_config_file(
    'config', 'configs/smoothadv_digits.py', 'The experiment; --config.FIELD=VALUE changes it.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; runs/NAME if not given.')
RUN = flags.DEFINE_list('stages', STAGES, f'Which of {",".join(STAGES)} to run.')
REDO = flags.DEFINE_list('redo', [], 'Stages to run anew; old results move to previous/.')
DEVICES = flags.DEFINE_integer('devices', 0, 'Devices to use (CPU: to simulate); 0 for all.')


def main(argv):
  parse_flags(argv)
  config = experiment.resolve(CONFIG.value)
  for name, chosen in (('stages', RUN.value), ('redo', REDO.value)):
    for stage in chosen:
      if stage not in STAGES:
        raise errors.UserError(f'--{name}: {stage!r} is no stage; {", ".join(STAGES)} are allowed')
  folder = WORKDIR.value or f'runs/{Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem}'
  redo = [stage for stage in STAGES if stage in REDO.value]
  for stage in redo:
    workdir.set_aside(folder, stage)
  workdir.check(folder, config)
  chosen = [stage for stage in STAGES if stage in {*RUN.value, *redo}]
  if chosen != ['report']:
    run = experiment.build(config, parallel.choose_devices(DEVICES.value, config['train']['batch_size']))
    workdir.describe(run, folder, ' '.join(['python -m launch', *argv[1:]]))
    for stage in chosen[:-1] if 'report' in chosen else chosen:
      stages.run_stage(stage, run, folder)
  if 'report' in chosen:
    page = report.build(folder)
    print(report.summary(folder), f'report: {page}', sep='\n')


def parse_flags(argv):
  """Parses the command line; what absl and ml_collections raise becomes a UserError."""
  try:
    rest = flags.FLAGS(argv)[1:]
  except Exception as error:  # A config file may raise anything.
    message = ' '.join(str(error).split()) or type(error).__name__
    raise errors.UserError(f'command line: {message}') from error
  if rest:
    raise errors.UserError(f'command line: {rest[0]!r} is no flag; --config, --workdir, --stages, '
                           '--redo, --devices are allowed')


if __name__ == '__main__':
  try:
    main(sys.argv)
  except errors.UserError as error:
    sys.exit(print(f'error: {error}', file=sys.stderr) or 2)
  except errors.NonFiniteLossError as error:
    sys.exit(print(f'error: {error}', file=sys.stderr) or 3)
  except KeyboardInterrupt:
    sys.exit(print('interrupted: the same command goes on', file=sys.stderr) or 130)
