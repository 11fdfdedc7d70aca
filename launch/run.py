"""What the launcher does: a command line, as a run or a sweep, and its exit status."""

import os
import sys

from absl import logging

from launch import flags, jobs, sweep
from robust_jax import backend, errors, stages, workdir
from robust_jax.config import experiment
from robust_jax.config.sections import check_workdir, resolve
from robust_jax.devices.choose import choose_devices
from robust_jax.stages import shards
from robust_jax.stages.sandwich import check_crossings
from robust_jax.workdir import interrupts


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
      submit_shards(given, resolve(given.config), wanted, redo)
    return 0
  if given.sweep is not None:
    return sweep.run(given.sweep, given.workdir, wanted, redo, num_devices=given.devices)
  config = resolve(given.config)
  if wanted != {'report'}:
    folder = given.workdir if given.shard is None else shards.check(
        given.workdir, given.shard, config, wanted)
    run_stages(config, folder, wanted, redo, given.devices, argv[1:])
  elif workdir.stages(given.workdir):
    stages.report(None, given.workdir)  # Also of a run that still goes on, and holds the lock.
  else:
    raise errors.UserError(f'--workdir is {given.workdir}, which has no results to report')
  return 0


def run_stages(config, folder, wanted, redo, num_devices, words):
  """Runs the wanted stages of a resolved config in its workdir, or in that of a shard.

  Stages in redo run anew; num_devices is as the flag, the command's words are kept in the record.
  """
  with workdir.locked(folder):
    check_workdir(folder, config, redo)
    shards.begin(folder, config)
    backend.tune()  # Settings of this process, before it computes anything.
    devices = choose_devices(num_devices, experiment.batch_sizes(config))
    run = shards.part(experiment.build(config, devices, images=wanted != {'attack_image'}), folder)
    stages.check(run, folder, wanted)
    workdir.set_aside(folder, redo)
    trained = 'train' in wanted or 'train' in workdir.stages(folder)
    print(run.summary(trained=trained), '->', folder, flush=True)
    for line in run.remarks(wanted):
      print(f'warning: {line}', file=sys.stderr, flush=True)
    workdir.describe(run, folder, words)
    for stage in stages.STAGES:
      if stage in wanted:
        stages.run_stage(stage, run, folder)
    if 'sandwich' in wanted:
      check_crossings(folder)


def submit_shards(given, config, wanted, redo):
  """Submits what is neither done nor under way of the shards of a `flags.CommandLine`."""
  folders = {}
  for shard in given.shards:
    own = shards.check(given.workdir, shard, config, wanted)
    folders[str(own.relative_to(given.workdir))] = own, shard

  def prepare(under_way):
    for name, (own, _) in folders.items():
      if name not in under_way:
        with workdir.locked(own):
          check_workdir(own, config, redo)
          workdir.set_aside(own, redo)

  # Without --redo, which a job that is queued again would take for another one.
  words = [*given.words, f'--stages={",".join(s for s in stages.STAGES if s in wanted)}']
  tasks = [jobs.Task(name, '{}/{}'.format(*shard),
                       [*sweep.LAUNCHER, *words, '--shard={}/{}'.format(*shard)])
           for name, (_, shard) in folders.items()]
  counts = jobs.submit(given.workdir, tasks, wanted, redo, given.submit, prepare)
  if counts == {'done': len(tasks)}:
    print(f'python -m robust_jax.analysis merge {given.workdir} joins them')


def program(argv):
  """`main` as a program: a mistake is one line and an exit status; does not return."""
  # Orbax reports through absl what it does, and errors that it raises as well.
  logging.set_verbosity(logging.FATAL)
  interrupts.raise_interrupted()
  try:
    sys.exit(main(argv))
  except (errors.UserError, errors.NonFiniteLossError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(error.exit_status)
  except interrupts.Interrupted as error:
    print(f'interrupted: {error}; the same command, without --redo, goes on', file=sys.stderr,
          flush=True)
    sys.stdout.flush()
    # At once: threads that still read or compute can crash the interpreter while it takes leave.
    os._exit(error.exit_status)
