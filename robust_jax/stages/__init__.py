"""The stages of a run, in order; each is a function of a Run and its workdir."""

import time

from robust_jax import checkpoint
from robust_jax import workdir as workdirs
from robust_jax.errors import UserError
from robust_jax.stages.attack import attack
from robust_jax.stages.certify import certify
from robust_jax.stages.train import train

STAGES = {'train': train, 'attack': attack, 'certify': certify}


def check_training(workdir, wanted, redo):
  """Raises UserError where a wanted stage needs a training that the workdir does not have."""
  needing = [stage for stage in STAGES if stage in wanted and stage != 'train']
  if needing and 'train' not in redo:
    done = workdirs.stages(workdir).get('train', {}).get('status') == 'done'
    if not done and 'train' not in wanted:
      raise UserError(f'--stages={",".join(needing)}: {workdir} has no finished training; run the '
                      'train stage first')
    if done and checkpoint.latest_step(workdir) is None:
      raise UserError(f'{workdir}/{checkpoint.FOLDER} has lost its checkpoints; train anew with '
                      '--redo=train')


def run_stage(stage, run, workdir):
  """Runs one of `STAGES` unless it is done, and keeps the record of it."""
  if not workdirs.begin(workdir, stage, run):
    print(f'{stage}: done already')
    return
  begun = time.monotonic()
  done = False
  try:
    STAGES[stage](run, workdir)
    done = True
  finally:
    workdirs.add_time(workdir, stage, time.monotonic() - begun, done=done)
