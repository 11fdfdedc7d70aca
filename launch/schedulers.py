"""What a cluster's scheduler tells a job."""

import os

from robust_jax.errors import UserError


def shard(total=None):
  """The shard (I, N) that this process is by SLURM's job array or Kubernetes' indexed job.

  Args:
    total: N; None for the number of tasks of the array.

  Raises:
    UserError: there is no such job, it does not say N, or I is not below it.
  """
  names = ('SLURM_ARRAY_TASK_ID', 'JOB_COMPLETION_INDEX')
  name = next((name for name in names if os.environ.get(name)), None)
  if name is None:
    raise UserError(f'--shard=auto must be in a job array of SLURM ({names[0]}) or an indexed job '
                    f'of Kubernetes ({names[1]}), which this is not')
  number = int(os.environ[name])
  if total is None:
    if name != names[0]:
      raise UserError(f'--shard must be auto/N, as {name} does not say of how many, got auto')
    first, last, total = (int(os.environ[f'SLURM_ARRAY_TASK_{what}'])
                          for what in ('MIN', 'MAX', 'COUNT'))
    if (first, last) != (0, total - 1):  # As where some tasks are submitted again.
      raise UserError(f'--shard must be auto/N in an array other than 0-(N-1), got auto in {total} '
                      f'tasks of {first}-{last}')
  if number >= total:
    raise UserError(f'--shard is auto of {total}, and {name} must be below that, got {number}')
  return number, total
