"""The stages of a run, in order; each is a function of a Run and its workdir."""

import time

from robust_jax import workdir as workdirs
from robust_jax.stages import weights
from robust_jax.stages.attack import attack
from robust_jax.stages.certify import certify
from robust_jax.stages.train import train
from robust_jax.stages.verify import verify

STAGES = {'train': train, 'attack': attack, 'certify': certify}
# It leaves nothing behind that would be done already, and runs whenever it is asked for.
CHECKS = {'verify': verify}
check = weights.check


def run_stage(stage, run, workdir):
  """Runs one of `STAGES` unless it is done, and keeps the record of it.

  A training whose last checkpoint is damaged is not done: it goes on from the one before.
  """
  if not workdirs.begin(workdir, stage, run,
                        again=stage == 'train' and weights.lost(workdir)):
    if stage != 'train':
      weights.check_same(run, workdir, stage)
    print(f'{stage}: done already')
    return
  begun = time.monotonic()
  facts = None
  try:
    facts = STAGES[stage](run, workdir)
  finally:
    workdirs.add_time(workdir, stage, time.monotonic() - begun, facts)
