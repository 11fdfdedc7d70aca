"""Trains, attacks, certifies and reports: `python -m launch --config=configs/NAME.py`."""

from launch import flags, process, sweep
from robust_jax import backend, errors, stages, workdir
from robust_jax.config import experiment
from robust_jax.config.sections import check_workdir, resolve
from robust_jax.devices.choose import choose_devices


def main(argv):
  given = flags.parse(argv)
  config, folder, num_devices = resolve(given.config), given.workdir, given.devices
  wanted = {*given.stages, *given.redo}
  # Attacks and certificates of parameters that are trained anew are stale.
  redo = stages.KEPT if 'train' in given.redo else given.redo
  if given.points is not None:
    return sweep.run(folder, *zip(*given.points), wanted, redo, flags=[f'--devices={num_devices}'])
  if wanted != {'report'}:
    run_stages(config, folder, wanted, redo, num_devices, argv[1:])
  elif workdir.stages(folder):
    stages.report(None, folder)  # Also of a run that still goes on, and holds the lock.
  else:
    raise errors.UserError(f'--workdir is {folder}, which has no results; a run that has begun is '
                           'allowed for --stages=report')
  return 0


def run_stages(config, folder, wanted, redo, num_devices, words):
  """Runs the wanted stages of a resolved config in its workdir.

  Stages in redo run anew; num_devices is as the flag, the command's words are kept in the record.
  """
  with workdir.locked(folder):
    check_workdir(folder, config, redo)
    backend.tune()  # Settings of this process, before it computes anything.
    devices = choose_devices(num_devices, experiment.batch_sizes(config))
    run = experiment.build(config, devices)
    stages.check(run, folder, wanted)
    workdir.set_aside(folder, redo)
    print(run.summary(), '->', folder, flush=True)
    workdir.describe(run, folder, words)
    for stage in stages.STAGES:
      if stage in wanted:
        stages.run_stage(stage, run, folder)


if __name__ == '__main__':
  process.run(main)
