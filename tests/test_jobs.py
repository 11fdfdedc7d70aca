"""Jobs of a cluster: real ones by submitit's local executor, and a SLURM of a few scripts."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_shards import entries

from launch import jobs
from launch import run as launcher
from robust_jax import workdir
from robust_jax.errors import UserError

submitit = pytest.importorskip('submitit', reason="without the extra 'submit'")
from launch import job  # noqa: E402 - which needs it

ROOT = Path(__file__).parents[1]
TINY = '''
from configs import base
from configs.base import component

def get_config():
  config = base.get_config()
  config.sigma = 0.25
  config.data.name = 'digits'
  config.model = component('model', 'mlp')
  config.train.update(batch_size=64, num_epochs=1.)
  config.certify.update(n=500)
  config.certify_images.update(num_images=8, images_per_call=4)
  return config

def sweep():
  return [{'data.name': name} for name in ('digits', %r)]
'''
# In place of a run: writes down its signals, saves for a while, and is done at its second try.
RUN = '''
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def save(number, frame):
  with open(folder / 'signals', 'a') as file:
    print(signal.Signals(number).name, file=file, flush=True)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
if (folder / 'ready').exists():
  sys.exit(0)
(folder / 'ready').touch()
while not (folder / 'signals').exists():
  time.sleep(0.02)
time.sleep(0.5)
(folder / 'saved').touch()
print('interrupted: told', file=sys.stderr)
sys.exit(75)
'''
SCRIPTS = {
    'sbatch': 'cat "$1" >> $PLACE/sbatch; [ -e $PLACE/refuse ] && echo no such partition >&2 && '
              'exit 1; echo Submitted batch job $((41 + $(grep -c "^#!" $PLACE/sbatch)))',
    'squeue': '[ -e $PLACE/squeue ] && cat $PLACE/squeue',
    'sacct': 'echo "JobID|State|NodeList"; cat $PLACE/sacct', 'srun': '', 'scontrol':
        'echo "$@" > $PLACE/requeued'}


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.setenv('PYTHONPATH', f'{ROOT}:{os.environ.get("PYTHONPATH", "")}')


@pytest.fixture
def tiny(tmp_path):
  (tmp_path / 'tiny.py').write_text(TINY % str(tmp_path / 'mine.npz'))
  return f'--config={tmp_path}/tiny.py'


@pytest.fixture
def slurm(tmp_path, monkeypatch):
  """A folder with what the commands of a SLURM were given and shall say."""
  place = tmp_path / 'slurm'
  place.mkdir()
  for name, text in SCRIPTS.items():
    (place / name).with_suffix('.sh').write_text(text)
    (tmp_path / 'bin').mkdir(exist_ok=True)
    (tmp_path / 'bin' / name).write_text(f'#!/bin/bash\n{text}\n')
    (tmp_path / 'bin' / name).chmod(0o755)
  monkeypatch.setenv('PLACE', str(place))
  monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
  (place / 'squeue').touch()
  (place / 'sacct').touch()
  return place


def launch(*words):
  return launcher.main(['launch', *words])


def wait_for(there):
  deadline = time.monotonic() + 120
  while not there() and time.monotonic() < deadline:
    time.sleep(0.05)
  assert there()


def wait(folder):
  """Waits for the end of all jobs."""
  wait_for(lambda: not jobs._under_way(folder, jobs._saved(folder)))


def table(text):
  """{first column: (job, state, the rest)} of a printed table."""
  rows = {}
  for line in text.splitlines():
    cells = line.split('  ')
    cells = [cell.strip() for cell in cells if cell.strip()]
    if len(cells) >= 4 and cells[0] != 'run':
      rows[cells[0].split(' ')[0]] = cells[1], cells[2], ' '.join(cells[4:])
  return rows


def children(pid):
  listed = subprocess.run(['ps', '-eo', 'pid=,ppid='], capture_output=True, text=True).stdout
  return [int(child) for child, parent in map(str.split, listed.splitlines())
          if int(parent) == int(pid)]


def test_shards_by_jobs_are_one_certification_also_after_a_preemption(tiny, tmp_path, capsys):
  folder, whole = tmp_path / 'run', tmp_path / 'whole'
  subprocess.run([sys.executable, '-m', 'launch', tiny, '--devices=1', f'--workdir={whole}',
                  '--stages=train,certify'], check=True)
  shutil.copytree(whole, folder, ignore=shutil.ignore_patterns('certify.*'))
  workdir.write_json(folder / 'stages.json', {'train': workdir.stages(whole)['train']})
  given = (tiny, '--devices=1', f'--workdir={folder}', '--stages=certify', '--shard=0-3/4',
           '--submit=local')
  assert launch(*given) == 0
  rows = table(capsys.readouterr().out)
  assert [*rows] == ['0/4', '1/4', '2/4', '3/4']
  assert {state for _, state, _ in rows.values()} == {'submitted'}
  log = folder / 'jobs' / f'{rows["1/4"][0]}_0_log.out'
  wait_for(lambda: log.exists() and f'\n{job.BEGIN}' in log.read_text())
  os.kill(children(rows['1/4'][0])[0], signal.SIGUSR2)
  assert launch(*given) == 0  # Whatever goes on or is done by now: none is submitted twice.
  again = table(capsys.readouterr().out)
  assert {name: row[0] for name, row in again.items()} == {
      name: row[0] for name, row in rows.items()}
  wait(folder)
  assert log.read_text().count(f'\n{job.BEGIN}') == 2
  assert launch(f'--workdir={folder}', '--jobs') == 0
  rows = table(capsys.readouterr().out)
  assert {state for _, state, _ in rows.values()} == {'done'}, rows
  assert all(line.startswith('certify: 2 images') for *_, line in rows.values())
  launcher.shards.merge(folder)
  assert entries(folder / 'certify.jsonl') == entries(whole / 'certify.jsonl')
  assert len(entries(folder / 'certify.jsonl')[1]) == 8


def test_a_run_of_a_sweep_that_fails_is_named_and_begins_again_alone(tiny, tmp_path, capsys):
  folder = tmp_path / 'sweep'
  given = (tiny, '--devices=1', f'--workdir={folder}', '--stages=train', '--sweep',
           '--submit=local')
  launch(*given)
  first = table(capsys.readouterr().out)
  wait(folder)
  launch(f'--workdir={folder}', '--jobs')
  rows = table(capsys.readouterr().out)
  assert rows['000'][:2] == (first['000'][0], 'done') and 'train: 23/23' in rows['000'][2]
  assert rows['001'][1] == 'failed' and rows['001'][2].startswith('error: ')
  assert 'mine.npz' in rows['001'][2]
  rng = np.random.default_rng(0)
  images, labels = rng.integers(0, 256, (64, 8, 8, 1), np.uint8), np.arange(64) % 10
  np.savez(tmp_path / 'mine.npz', train_images=images, train_labels=labels, test_images=images,
           test_labels=labels)
  before = (folder / '000' / 'metrics.jsonl').stat().st_mtime_ns
  launch(*given)
  again = table(capsys.readouterr().out)
  assert again['000'][:2] == rows['000'][:2]
  assert again['001'][1] == 'submitted' and again['001'][0] != rows['001'][0]
  assert again['001'][2].startswith('before: error: ')
  wait(folder)
  launch(*given)
  printed = capsys.readouterr().out
  assert {row[1] for row in table(printed).values()} == {'done'} and 'compares them' in printed
  assert (folder / '000' / 'metrics.jsonl').stat().st_mtime_ns == before
  assert workdir.stages(folder / '001')['train']['status'] == 'done'


# A SLURM of scripts.


def test_the_jobs_of_a_sweep_are_one_array_and_only_what_ended_is_submitted_again(
    slurm, tmp_path, capsys):
  folder = tmp_path / 'sweep'
  given = ('--config=digits:smoothadv', '--sweep', f'--workdir={folder}', '--submit=slurm',
           '--submit.partition=gpu', '--submit.timeout_min=30', '--submit.gpus_per_node=1')
  launch(*given)
  script = (slurm / 'sbatch').read_text()
  for line in ('array=0-2%3', 'partition=gpu', 'time=30', 'gpus-per-node=1', 'open-mode=append'):
    assert f'#SBATCH --{line}\n' in script
  assert {name: row[:2] for name, row in table(capsys.readouterr().out).items()} == {
      f'00{i}': (f'42_{i}', 'submitted') for i in range(3)}
  words = submitit.SlurmJob(folder / 'jobs', '42_1').submission().function.words
  assert words == [sys.executable, '-m', 'launch', f'--workdir={folder}/001',
                   '--stages=train,attack,certify,sandwich,report', '--devices=0']
  (slurm / 'squeue').write_text('42_0 RUNNING\n42_1 PENDING\n42_2 OUT_OF_MEMORY\n7 RUNNING\n')
  (slurm / 'sacct').write_text('42_2|OUT_OF_MEMORY|n1\n')
  (folder / 'jobs' / '42_0_0_log.out').write_text('$ a\nerror: b\n$ a\ntrain: 7/9\nsubmitit INFO')
  launch(f'--workdir={folder}', '--jobs')
  rows = table(capsys.readouterr().out)
  assert rows['000'][1:] == ('running', 'train: 7/9') and rows['001'][1] == 'pending'
  assert rows['002'][1] == 'failed' and rows['002'][2].startswith('OUT_OF_MEMORY')
  config = (folder / '001' / 'config.json').stat().st_mtime_ns
  launch(*given)
  rows = table(capsys.readouterr().out)
  assert [row[:2] for row in rows.values()] == [
      ('42_0', 'running'), ('42_1', 'pending'), ('43', 'submitted')]
  assert (folder / '001' / 'config.json').stat().st_mtime_ns == config
  with pytest.raises(UserError, match='--redo: .*000, 001 under way'):
    launch(*given, '--redo=attack')
  # A job that ended well has not failed where its results were moved away or more is wanted.
  (slurm / 'squeue').write_text('')
  (folder / 'jobs' / '43_0_result.pkl').touch()
  launch(f'--workdir={folder}', '--jobs')
  assert table(capsys.readouterr().out)['002'][1] == 'not done'
  # A run by hand is under way too.
  with workdir.locked(folder / '000'):
    launch(f'--workdir={folder}', '--jobs')
  assert table(capsys.readouterr().out)['000'][1] == 'running'
  # Not to know what is under way is no reason to submit.
  (slurm / 'squeue').unlink()
  before = (slurm / 'sbatch').read_text()
  with pytest.raises(UserError, match='squeue'):
    launch(*given)
  assert (slurm / 'sbatch').read_text() == before


def test_what_sbatch_refuses_is_one_line(slurm, tmp_path):
  (slurm / 'refuse').touch()
  with pytest.raises(UserError, match='no such partition') as caught:
    launch('--sweep', f'--workdir={tmp_path}/s', '--submit=slurm', '--submit.timeout_min=30')
  assert '\n' not in str(caught.value) and jobs._saved(tmp_path / 's') == {}


@pytest.mark.parametrize(('sent', 'everybody', 'requeued'), [
    (['SIGUSR2'], False, True), (['SIGTERM', 'SIGUSR2'], True, True),
    (['SIGUSR2', 'SIGTERM'], True, True), (['SIGTERM', 'SIGTERM'], True, False)])
def test_a_job_is_told_once_and_queued_again_where_submitit_is(sent, everybody, requeued, slurm,
                                                               tmp_path):
  (tmp_path / 'run.py').write_text(RUN)
  words = [sys.executable, str(tmp_path / 'run.py'), str(tmp_path)]
  delayed = submitit.helpers.DelayedSubmission(job.Job(words))
  delayed.set_timeout(60, 3)
  delayed.dump(tmp_path / '7_submitted.pkl')
  start = lambda: subprocess.Popen(
      [sys.executable, '-m', 'submitit.core._submit', str(tmp_path)], cwd=ROOT,
      env={**os.environ, 'SUBMITIT_EXECUTOR': 'slurm', 'SLURM_JOB_ID': '7'})
  process = start()
  wait_for((tmp_path / 'ready').exists)
  for name in sent:
    for pid in (process.pid, *(children(process.pid) if everybody else ())):
      os.kill(pid, signal.Signals[name])
    time.sleep(0.1)
  status = process.wait(30)
  assert (tmp_path / 'signals').read_text().split() == ['SIGINT'] and (tmp_path / 'saved').exists()
  assert (slurm / 'requeued').exists() == requeued and (status == 75 or requeued)
  if requeued:
    assert (slurm / 'requeued').read_text() == 'requeue 7\n'
    assert start().wait(30) == 0  # As the scheduler does.


def test_a_command_that_the_system_ends_fails_the_job(capfd):
  with pytest.raises(SystemExit) as caught:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
      job.Job([sys.executable, '-c', 'import os; os.kill(os.getpid(), 9)'])()
    finally:
      for number, handler in handlers.items():
        signal.signal(number, handler)
  assert caught.value.code == 137 and 'error: SIGKILL ended the run' in capfd.readouterr().out


# Mistakes.


@pytest.mark.parametrize(('cluster', 'settings', 'message'), [
    ('slurm', {'partion': 'gpu', 'timeout_min': 9}, "'partion'; did you mean partition"),
    ('local', {'partition': 'gpu'}, "--submit.SETTING .*'partition'"),
    ('slurm', {}, 'timeout_min must be minutes.*None'),
    ('slurm', {'timeout_min': '4:00'}, "timeout_min must be minutes.*'4:00'"),
    ('slurm', {'timeout_min': 9, 'gpus_per_node': 'all'}, "gpus_per_node.*'?all"),
    ('slurm', {'timeout_min': 9, 'nodes': 2}, "'nodes'"),
])
def test_a_setting_that_is_not_valid_is_one_line_before_anything_is_done(
    cluster, settings, message, slurm):
  with pytest.raises(UserError, match=message) as caught:
    jobs.check(jobs.Submission(cluster, settings))
  assert '\n' not in str(caught.value)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(UserError, match='sbatch'):
    jobs.check(jobs.Submission('slurm', {'timeout_min': 9}))
  with pytest.raises(UserError, match='nothing was submitted'):
    jobs.show(tmp_path)
  monkeypatch.setitem(sys.modules, 'submitit', None)
  with pytest.raises(UserError, match=r"pip install -e '\.\[submit\]'"):
    jobs.check(jobs.Submission('local', {}))


def test_shards_of_what_is_not_trained_are_refused_before_they_are_submitted(tiny, tmp_path):
  with pytest.raises(UserError, match='has no training'):
    launch(tiny, f'--workdir={tmp_path}/run', '--shard=0-3/4', '--submit=local')
  assert not (tmp_path / 'run').exists()
