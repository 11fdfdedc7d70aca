"""The stages of a run, in order; each is a function of a Run and its workdir."""

import time
from pathlib import Path

from robust_jax import workdir as workdirs
from robust_jax.devices import processes
from robust_jax.errors import TrainingError
from robust_jax.stages import weights
from robust_jax.stages.attack import attack
from robust_jax.stages.attack_image import attack_image
from robust_jax.stages.attack_image import check as check_attack_image
from robust_jax.stages.bound import bound
from robust_jax.stages.bound import check as check_bound
from robust_jax.stages.bound import check_crossings as check_bounded
from robust_jax.stages.certify import certify
from robust_jax.stages.check import check as check_attacks
from robust_jax.stages.export import check as check_export
from robust_jax.stages.export import export
from robust_jax.stages.label import check as check_label
from robust_jax.stages.label import label
from robust_jax.stages.report import report
from robust_jax.stages.sandwich import check as check_sandwich
from robust_jax.stages.sandwich import check_crossings as check_certified
from robust_jax.stages.sandwich import sandwich
from robust_jax.stages.train import train
from robust_jax.stages.verify import verify
from robust_jax.workdir import monitoring

STAGES = {'train': train, 'attack': attack, 'certify': certify, 'sandwich': sandwich,
          'bound': bound, 'verify': verify, 'check': check_attacks, 'label': label,
          'attack_image': attack_image, 'export': export, 'report': report}
# What a run does unless --stages says otherwise.
DEFAULT = ('train', 'attack', 'certify', 'sandwich', 'report')
# Their results stay in the workdir: they run once, and again by --redo. The others run whenever
# they are asked for.
KEPT = ('train', 'attack', 'certify', 'sandwich', 'bound')
# What the first of several processes does alone; the others compute.
OF_ONE_PROCESS = ('export', 'report')
# Those that others start from: results are stale with what they were made from.
_FOLLOW = {'train': KEPT, 'certify': ('sandwich',)}


def check(run, workdir, wanted):
  """Raises UserError where the wanted stages lack what they start from, before hours are spent."""
  weights.check(run, workdir, wanted)
  if 'label' in wanted:
    check_label(run)
  if 'attack_image' in wanted:
    check_attack_image(run)
  if 'export' in wanted:
    check_export(run)
  if 'sandwich' in wanted:
    check_sandwich(run, workdir, wanted)
  if 'bound' in wanted:
    check_bound(run)


def check_crossings(workdir, wanted):
  """Raises CrossingError where an attack is within a certificate or a verified radius.

  Of the logs that the wanted stages have written, or may contradict.
  """
  if 'sandwich' in wanted:
    check_certified(workdir)
  if {'attack', 'bound'} & {*wanted}:
    check_bounded(workdir)


def with_followers(redo):
  """The stages to be redone, and those whose results are of theirs."""
  return {*redo}.union(*(_FOLLOW.get(stage, ()) for stage in redo))


def finished(workdir, wanted):
  """Whether a workdir has all the wanted stages behind it, those of `KEPT` or the report."""
  done = {stage for stage, record in workdirs.stages(workdir).items() if record['status'] == 'done'}
  if (Path(workdir) / 'report.html').exists():
    done.add('report')
  return {*wanted} <= done


def run_stage(stage, run, workdir):
  """Runs a stage; one of `KEPT` unless it is done, with a record of it in the workdir.

  A training whose last checkpoint is damaged is not done: it goes on from the one before.
  """
  if processes.count() > 1 and stage not in ('train', *OF_ONE_PROCESS):
    processes.check_same(f'classifier of {stage}', weights.load(run, workdir).origin,
                         lambda number, first, other: (
                             f'{stage}: all processes must have the same classifier, process '
                             f'{number} has {other}, process 0 {first}'))
  if stage not in KEPT:
    with monitoring.heartbeat(stage):
      STAGES[stage](run, workdir)
    return
  # One that was skipped has left nothing, and may have what it needs by now.
  # By process 0, which may move damaged checkpoints before another one has looked at them.
  again = processes.of_first(f'{stage} again', lambda: (
      stage not in workdirs.results(workdir)
      or stage == 'train' and weights.is_damaged(workdir)))
  if not workdirs.begin(workdir, stage, run, again=again):
    if stage != 'train':
      weights.check_same_classifier(run, workdir, stage)
    print(f'{stage}: done already')
    return
  begun = time.monotonic()
  facts = None
  try:
    with monitoring.heartbeat(stage):
      facts = STAGES[stage](run, workdir)
  except TrainingError:
    facts = {'status': workdirs.STOPPED}
    raise
  finally:
    workdirs.add_time(workdir, stage, time.monotonic() - begun, facts)
