"""Runs as jobs of a scheduler, by hand."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from launch import flags

ROOT = Path(__file__).parents[1]
SBATCH = ROOT / 'docs' / 'shards.sbatch'
# In place of python: waits, and ends as a run that is interrupted or done.
RUN = '''#!/bin/bash
trap 'sleep 0.1; exit 75' TERM
echo "$@" > begun
for i in $(seq 100); do [ -e done ] && exit 0; sleep 0.05; done
'''


def wait_for(path):
  deadline = time.monotonic() + 30
  while not path.exists() and time.monotonic() < deadline:
    time.sleep(0.02)
  return path.read_text()


def test_the_words_of_the_array_are_understood(monkeypatch):
  subprocess.run(['bash', '-n', SBATCH], check=True)
  text = SBATCH.read_text()
  assert '#SBATCH --array=0-3\n' in text
  command = next(line for line in text.splitlines() if line.startswith('python -m launch'))
  words = shlex.split(command.rstrip(' &').replace('$1', 'runs/pgd'))[2:]
  monkeypatch.setenv('SLURM_ARRAY_TASK_ID', '3')
  given = flags.parse(words)
  assert given.shard == (3, 4) and given.workdir == Path('runs/pgd')
  assert given.stages == ['certify', 'sandwich']


@pytest.mark.parametrize(('sent', 'status', 'requeued'), [
    (signal.SIGUSR1, 75, True), (signal.SIGTERM, 75, False), (None, 0, False)])
def test_a_task_is_queued_again_only_where_its_time_ends(sent, status, requeued, tmp_path):
  for name, text in (('python', RUN), ('scontrol', '#!/bin/bash\necho "$@" > requeued\n')):
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  process = subprocess.Popen(['bash', SBATCH, 'a b'], cwd=tmp_path, env={
      **os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '17'})
  assert '--workdir=a b ' in wait_for(tmp_path / 'begun')
  if sent:
    process.send_signal(sent)
  else:
    (tmp_path / 'done').touch()
  assert process.wait(30) == status
  assert (tmp_path / 'requeued').exists() == requeued
  if requeued:
    assert (tmp_path / 'requeued').read_text() == 'requeue 17\n'
