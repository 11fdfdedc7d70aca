"""Trains, attacks, certifies and reports: `python -m launch --config=configs/NAME.py`."""

import os
import sys

from absl import logging

from launch import command_line, sweep
from robust_jax import errors, experiment, interrupts, parallel, report, stages, workdir
from robust_jax.configuration import resolve


def main(argv):
  given = command_line.parse(argv)
  config, folder, num_devices = resolve(given.config), given.workdir, given.devices
  wanted = {*given.stages, *given.redo}
  # Attacks and certificates of parameters that are trained anew are stale.
  redo = stages.STAGES if 'train' in given.redo else given.redo
  if given.points is not None:
    return sweep.run(folder, *zip(*given.points), wanted, redo, flags=[f'--devices={num_devices}'])
  if wanted != {'report'}:
    run_stages(config, folder, wanted, redo, num_devices, argv[1:])
  elif workdir.stages(folder):
    print_report(folder)  # Also of a run that still goes on, and holds the lock.
  else:
    raise errors.UserError(f'--workdir is {folder}, which has no results; a run that has begun is '
                           'allowed for --stages=report')
  return 0


def run_stages(config, folder, wanted, redo, num_devices, words):
  """Runs the wanted stages, checks and 'report' of a resolved config in its workdir.

  Stages in redo run anew; num_devices is as the flag, the command's words are kept in the record.
  """
  with workdir.locked(folder):
    workdir.check(folder, config, redo)
    devices = parallel.choose_devices(num_devices, experiment.batch_sizes(config))
    run = experiment.build(config, devices)
    stages.check(run, folder, wanted)
    workdir.set_aside(folder, redo)
    print(run.summary(), '->', folder, flush=True)
    workdir.describe(run, folder, words)
    for stage in stages.STAGES:
      if stage in wanted:
        stages.run_stage(stage, run, folder)
    for stage in stages.CHECKS:
      if stage in wanted:
        stages.CHECKS[stage](run, folder)
    if 'report' in wanted:
      print_report(folder)


def print_report(folder):
  page = report.build(folder)
  print(report.summary(folder), f'report: {page}', sep='\n')


def run(main):
  """Runs a main(argv) -> status as this process: mistakes and signals end it with one line."""
  # Orbax reports through absl what it does, and errors that it raises as well.
  logging.set_verbosity(logging.FATAL)
  interrupts.raise_interrupted()
  try:
    sys.exit(main(sys.argv))
  except (errors.UserError, errors.NonFiniteLossError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(error.exit_status)
  except interrupts.Interrupted as error:
    print(f'interrupted: {error}; the same command, without --redo, goes on', file=sys.stderr,
          flush=True)
    sys.stdout.flush()
    # At once: threads that still read or compute can crash the interpreter while it takes leave.
    os._exit(error.exit_status)


if __name__ == '__main__':
  run(main)
