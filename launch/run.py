"""What the launcher does: a command line, as a run or a sweep, and its exit status."""

import contextlib
import sys

from launch import agreement, flags, jobs, sweep
from robust_jax import backend, errors, stages, workdir
from robust_jax.config import experiment
from robust_jax.config.sections import check_workdir, resolve
from robust_jax.devices import processes
from robust_jax.devices.choose import choose_devices
from robust_jax.stages import shards
from robust_jax.workdir import checkpoint


def main(argv):
  """Does what a command line asks for; returns the exit status."""
  given = flags.parse(argv)
  wanted = {*given.stages, *given.redo}
  if wanted == {'attack'} and not given.redo and given.config.attack_image.file:
    wanted = {'attack_image'}  # Of the test images nobody would name a file.
  redo = stages.with_followers(given.redo)
  if given.jobs:
    jobs.show(given.workdir)
    return 0
  if given.submit:
    jobs.check(given.submit)
    if given.sweep is not None:
      sweep.submit(given.sweep, given.workdir, wanted, redo, submission=given.submit,
                   num_devices=given.devices)
    else:
      jobs.submit_shards(given, resolve(given.config), wanted, redo)
    return 0
  if given.meeting is not None:
    processes.begin(given.meeting)
    agreement.check_command(given)
  if given.sweep is not None:
    return sweep.run(given.sweep, given.workdir, wanted, redo, num_devices=given.devices)
  config = resolve(given.config)
  if wanted != {'report'}:
    folder = given.workdir if given.shard is None else shards.check(
        given.workdir, given.shard, config, wanted)
    run_stages(config, folder, wanted, redo, given.devices, argv[1:])
  elif processes.index():
    pass  # The first one does it.
  elif workdir.stages(given.workdir):
    stages.report(None, given.workdir)  # Also of a run that still goes on, and holds the lock.
  else:
    raise errors.UserError(f'--workdir is {given.workdir}, which has no results to report')
  return 0


def run_stages(config, folder, wanted, redo, num_devices, words):
  """Runs the wanted stages of a resolved config in its workdir, or in that of a shard.

  Stages in redo run anew; num_devices is as the flag, the command's words are kept in the record.
  Of several processes the first has the workdir, and each other a copy that is thrown away.
  """
  with contextlib.ExitStack() as stack:
    if processes.index() == 0:
      stack.enter_context(workdir.locked(folder))
      check_workdir(folder, config, redo)
      shards.begin(folder, config)
    backend.tune()  # Settings of this process, before it computes anything.
    devices = choose_devices(num_devices, experiment.batch_sizes(config))
    run = shards.part(experiment.build(config, devices, images=wanted != {'attack_image'}), folder)
    agreement.check_environment(devices)
    agreement.check_data(run, wanted)
    if processes.index() == 0:
      stages.check(run, folder, wanted)
      workdir.set_aside(folder, redo)
      trained = 'train' in wanted or 'train' in workdir.stages(folder)
      print(run.summary(trained=trained), '->', folder, flush=True)
      for line in run.remarks(wanted):
        print(f'warning: {line}', file=sys.stderr, flush=True)
      workdir.describe(run, folder, words)
      workdir.share(folder)
    else:
      folder = stack.enter_context(workdir.copied(folder))
    for stage in stages.STAGES:
      if stage in wanted and not (stage in stages.OF_ONE_PROCESS and processes.index()):
        stages.run_stage(stage, run, folder)
      checkpoint.in_sight(folder, f'after {stage}')  # Later stages read it.
    processes.barrier('stages')  # The lock is kept until none of them reads any more.
    stages.check_crossings(folder, wanted)
