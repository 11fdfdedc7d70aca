"""The stages of a run, in order; each is a function of a Run and its workdir."""

import time

from robust_jax import workdir as workdirs
from robust_jax.errors import UserError
from robust_jax.stages.attack import attack
from robust_jax.stages.certify import certify
from robust_jax.stages.train import train

STAGES = {'train': train, 'attack': attack, 'certify': certify}


def run_stage(stage, run, workdir):
  """Runs one of `STAGES` unless it is done, and keeps the record of it.

  Raises:
    UserError: it needs a training that is not finished.
  """
  if stage != 'train' and workdirs.stages(workdir).get('train', {}).get('status') != 'done':
    raise UserError(f'--stages={stage}: {workdir} has no finished training; run the train stage '
                    'first')
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
