"""Runs of a sweep, or shards of a run, as jobs of a cluster: `python -m launch --submit=slurm`.

submitit gives them to the scheduler. DIR/jobs has its files, with a log for each job, and
jobs.json: what was submitted last of each run. What is done is known by the workdirs, and what is
under way by the scheduler.
"""

import contextlib
import datetime
import getpass
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from robust_jax import stages, workdir
from robust_jax.config.sections import check_workdir
from robust_jax.errors import UserError, choices
from robust_jax.stages import shards

CLUSTERS = ('slurm', 'local')
FOLDER = 'jobs'
LAUNCHER = (sys.executable, '-m', 'launch')
# The end of its time is no failure of a run, which goes on from there.
_TIMEOUTS = 100
_MINUTES_OF_LOCAL_JOBS = 7 * 24 * 60
# Of submitit's settings: a run is one process with one log, and time is timeout_min.
_FIXED = {'nodes', 'tasks_per_node', 'ntasks_per_node', 'stderr_to_stdout', 'time'}
# The states of SLURM of jobs that are over.
_OVER = {'BOOT_FAIL', 'CANCELLED', 'COMPLETED', 'DEADLINE', 'FAILED', 'NODE_FAIL', 'OUT_OF_MEMORY',
         'PREEMPTED', 'REVOKED', 'TIMEOUT'}


class Submission(NamedTuple):
  """Where jobs go.

  Attributes:
    cluster: of CLUSTERS.
    settings: {name: value} of submitit's.
  """

  cluster: str
  settings: dict


class Task(NamedTuple):
  """What may become a job.

  Attributes:
    name: where its workdir is, below the folder of all.
    title: what the table calls it.
    words: of its command.
  """

  name: str
  title: str
  words: list[str]


def check(submission):
  """Raises UserError where submitit, the scheduler or a setting is missing or not valid."""
  library, (cluster, settings) = _submitit(), submission
  if cluster == 'slurm' and not shutil.which('sbatch'):
    raise UserError("--submit must be where the cluster's command sbatch is, or local, got slurm")
  executor = {'slurm': library.SlurmExecutor, 'local': library.LocalExecutor}[cluster]
  valid = library.AutoExecutor._valid_parameters() | executor._valid_parameters()
  for name in settings:
    if name not in valid - _FIXED:
      raise UserError(choices('--submit.SETTING', sorted(valid - _FIXED), name))
  minutes = settings.get('timeout_min')
  if minutes is None and cluster == 'slurm' or minutes is not None and not (
      isinstance(minutes, int) and minutes > 0):
    raise UserError('--submit.timeout_min must be minutes, after which a job is saved and queued '
                    f'again, got {minutes!r}')
  with tempfile.TemporaryDirectory() as scratch:
    _executor(Path(scratch), submission)


def submit(folder, tasks, wanted, redo, submission, prepare):
  """Submits what is neither done nor under way, and prints the table of all.

  Args:
    folder: that of the tasks.
    tasks: list of Task.
    wanted: names of the stages that each of them runs.
    redo: names of the stages that `prepare` puts aside.
    submission: Submission, which `check` has passed.
    prepare: is called with the set of the names that are under way, and makes all others ready.

  Returns:
    {state: how many tasks are in it}.

  Raises:
    UserError: something to be done anew is under way, or the scheduler refuses.
  """
  folder = Path(folder)
  with workdir.locked(folder):
    saved = _saved(folder)
    entries = {task.name: {**saved.get(task.name, {}), 'title': task.title,
                           'stages': [stage for stage in stages.STAGES if stage in wanted]}
               for task in tasks}
    under_way = _under_way(folder, entries)
    if redo and under_way:
      raise UserError(f'--redo: {folder} has {", ".join(under_way)} under way; scancel ends a job, '
                      'kill one that is local')
    prepare({*under_way})
    found = _look(folder, entries, under_way)
    left = [task for task in tasks if found[task.name][0] not in ('done', 'running', 'pending')]
    for task, job in zip(left, _send(folder, left, submission)):
      line = found[task.name][1]
      entries[task.name] |= {'cluster': submission.cluster, 'job': job}
      found[task.name] = 'submitted', f'before: {line}' if line else ''
    (folder / FOLDER).mkdir(exist_ok=True)
    workdir.write_json(folder / FOLDER / 'jobs.json', {**saved, **entries})
  return _print(folder, entries, found)


def show(folder):
  """Prints the table of what was submitted of a folder.

  Raises:
    UserError: nothing was.
  """
  folder = Path(folder)
  if not (entries := _saved(folder)):
    raise UserError(f'--jobs: --workdir is {folder}, of which nothing was submitted')
  _print(folder, entries, _look(folder, entries, _under_way(folder, entries)))


def _submitit():
  """The library, without its remarks."""
  try:
    import submitit
  except ImportError as error:
    raise UserError("--submit needs the package submitit: pip install -e '.[submit]'") from error
  logging.getLogger('submitit').setLevel(logging.ERROR)
  return submitit


def _executor(folder, submission):
  """The executor of submitit whose files are in a folder; UserError where a value is not valid."""
  library, (cluster, settings) = _submitit(), submission
  settings = {'timeout_min': _MINUTES_OF_LOCAL_JOBS, 'name': 'launch', **settings,
              'stderr_to_stdout': True}
  common = library.AutoExecutor._valid_parameters()
  try:
    made = library.AutoExecutor(folder, cluster, **{f'{cluster}_max_num_timeout': _TIMEOUTS})
    made.update_parameters(**{name if name in common else f'{cluster}_{name}': value
                              for name, value in settings.items()})
  except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
    raise UserError(f'--submit.SETTING: {" ".join(str(error).split())}') from error
  return made


def _send(folder, tasks, submission):
  """Submits tasks, as one array; the ids of their jobs."""
  if not tasks:
    return []
  from launch import job  # Which needs submitit.
  executor = _executor(folder / FOLDER, submission)
  try:
    # Within a job of SLURM, what that one was told is nothing for others.
    with _submitit().helpers.clean_env(), _silent(), executor.batch():
      jobs = [executor.submit(job.Job(task.words)) for task in tasks]
  except (OSError, RuntimeError) as error:
    raise UserError(f'--submit={submission.cluster}: {" ".join(str(error).split())}') from error
  return [job.job_id for job in jobs]


@contextlib.contextmanager
def _silent():
  """A context whose new processes have no standard output of ours: a pipe stays open with them."""
  sys.stdout.flush()
  sys.stderr.flush()
  kept = {number: os.dup(number) for number in (1, 2)}
  with open(os.devnull, 'wb') as null:
    for number in kept:
      os.dup2(null.fileno(), number)
  try:
    yield
  finally:
    for number, copy in kept.items():
      os.dup2(copy, number)
      os.close(copy)


def _saved(folder):
  """{name: {'title', 'stages', 'cluster', 'job'}}; the last two once it was submitted."""
  path = folder / FOLDER / 'jobs.json'
  return workdir.read_json(path) if path.exists() else {}


def _under_way(folder, entries):
  """{name: 'running' or 'pending'} of what a scheduler has, or another process works on."""
  states = {}
  for cluster, listed in (('slurm', _slurm_jobs), ('local', _local_jobs)):
    names = {entry['job']: name for name, entry in entries.items()
             if entry.get('cluster') == cluster}
    states |= {names[job]: state for job, state in (listed(folder, names) if names else ())
               if job in names}
  return states | {name: 'running' for name in entries
                   if name not in states and workdir.in_use(folder / name)}


def _slurm_jobs(folder, jobs):
  """(id, state) of the user's jobs that are not over."""
  words = ('squeue', '--noheader', '--array', '--states=all', f'--user={getpass.getuser()}',
           '--format=%i %T')
  try:
    listed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
  except (OSError, subprocess.CalledProcessError) as error:
    # Not to know is no reason to submit again.
    reason = ' '.join((getattr(error, 'stderr', '') or str(error)).split())
    raise UserError(f'squeue cannot say which jobs are under way ({reason})') from error
  for line in listed.splitlines():
    job, state = line.split()
    if state not in _OVER:
      yield job, 'pending' if state == 'PENDING' else 'running'


def _local_jobs(folder, jobs):
  """(id, state) of the processes that submitit has started for a folder and that go on."""
  listed = subprocess.run(['ps', '-ww', '-o', 'pid=,args=', '-p', ','.join(jobs)],
                          capture_output=True, text=True).stdout
  for line in listed.splitlines():
    pid, words = line.split(None, 1)
    if words.endswith(str((folder / FOLDER).absolute())):
      yield pid, 'running'


def _look(folder, entries, under_way):
  """{name: (state, the last line of its log, or that of its error)}."""
  library, found = _submitit(), {}
  kinds = {'slurm': library.SlurmJob, 'local': library.LocalJob}
  jobs = {name: kinds[entry['cluster']](folder / FOLDER, entry['job'])
          for name, entry in entries.items() if 'job' in entry}
  for name, entry in entries.items():
    job = jobs.get(name)
    lines = _lines(job.paths.stdout) if job else []
    errors = [line for line in lines if line.startswith(('error: ', 'interrupted: '))]
    last = lines[-1] if lines else ''
    if _done(folder / name, {*entry['stages']}, job):
      found[name] = 'done', last
    elif name in under_way:
      found[name] = under_way[name], last
    elif not job or job.paths.result_pickle.exists():  # What is wanted now, it was not asked for.
      found[name] = 'not done', ''
    elif errors:
      found[name] = errors[-1].partition(': ')[0].replace('error', 'failed'), errors[-1]
    else:
      # Ended by the system: SLURM may know why.
      why = [job.state] if entry['cluster'] == 'slurm' else []
      found[name] = 'failed', ': '.join([*why, last])
  return found


def _done(place, wanted, job):
  """Whether a workdir has the wanted stages, and the job has run those that are never done."""
  lasting = {*stages.KEPT, 'report'}
  return stages.finished(place, wanted & lasting) and (
      wanted <= lasting or bool(job and job.paths.result_pickle.exists()))


def _lines(path):
  """What the last attempt of a job has printed."""
  from launch import job
  text = path.read_text(encoding='utf-8', errors='replace') if path.exists() else ''
  text = f'\n{text}'.rpartition(f'\n{job.BEGIN}')[2]
  return [line.strip() for line in text.splitlines()[1:]
          if line.strip() and not line.startswith(('submitit ', 'srun: '))]


def _print(folder, entries, found):
  """Prints the table; {state: how many are in it}."""
  rows, counts = [('run', 'job', 'state', 'time', 'last line')], {}
  for name, entry in entries.items():
    state, line = found[name]
    counts[state] = counts.get(state, 0) + 1
    spent = datetime.timedelta(seconds=round(_seconds(folder / name, entry['stages'], state)))
    rows.append((entry['title'], entry.get('job', '-'), state, str(spent), line))
  widths = [max(map(len, column)) for column in zip(*rows)]
  for *cells, line in rows:
    print('  '.join([*map(str.ljust, cells, widths), line]).rstrip())
  print(', '.join(f'{count} {state}' for state, count in counts.items()),
        f'of {len(entries)}; logs are in {folder / FOLDER}')
  return counts


def _seconds(place, wanted, state):
  """How long the wanted stages of a workdir have run."""
  records = [record for stage, record in workdir.stages(place).items() if stage in wanted]
  since = [datetime.datetime.fromisoformat(record['started']) for record in records
           if state == 'running' and record['status'] == 'running']
  now = datetime.datetime.now(datetime.UTC)
  return sum(record['seconds'] for record in records) + sum(
      (now - one).total_seconds() for one in since)


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
  tasks = [Task(name, '{}/{}'.format(*shard),
                [*LAUNCHER, *words, '--shard={}/{}'.format(*shard)])
           for name, (_, shard) in folders.items()]
  counts = submit(given.workdir, tasks, wanted, redo, given.submit, prepare)
  if counts == {'done': len(tasks)}:
    print(f'python -m robust_jax.analysis merge {given.workdir} joins them')
