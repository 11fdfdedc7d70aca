"""Runs as jobs of a scheduler, by hand."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from launch import flags
from robust_jax.errors import NonFiniteLossError, NotMetError, UserError
from robust_jax.workdir import interrupts

ROOT = Path(__file__).parents[1]
SBATCH = ROOT / 'docs' / 'shards.sbatch'
POD = ROOT / 'docs' / 'pod.sbatch'
# In place of python: waits, and ends as a run that is interrupted, once it is let go, or done.
RUN = '''#!/bin/bash
trap 'until [ -e released ]; do sleep 0.02; done; exit 75' TERM
echo "$@" > begun
for i in $(seq 100); do [ -s done ] && exit $(cat done); sleep 0.05; done
'''
# Passes signals on to its one task and has its status, as srun does.
SRUN = '''#!/bin/bash
echo "$1 $SRUN_CPUS_PER_TASK" > srun.log
exec "${@:2}"
'''


def wait_for(path):
  deadline = time.monotonic() + 30
  while not (path.exists() and path.read_text()) and time.monotonic() < deadline:
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


def begin(file, tmp_path, *words, **environment):
  """A job of an sbatch file, in which `python`, `srun` and `scontrol` are stand-ins."""
  for name, text in (('python', RUN), ('srun', SRUN),
                     ('scontrol', '#!/bin/bash\necho "$@" > requeued\n')):
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  return subprocess.Popen(['bash', file, *words], cwd=tmp_path, env={
      **os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '17',
      **environment})


@pytest.mark.parametrize(('sent', 'status', 'requeued'), [
    (signal.SIGUSR1, 75, True), (signal.SIGTERM, 75, False), (None, 0, False)])
def test_a_task_is_queued_again_only_where_its_time_ends(sent, status, requeued, tmp_path):
  process = begin(SBATCH, tmp_path, 'a b')
  assert '--workdir=a b ' in wait_for(tmp_path / 'begun')
  if sent:
    process.send_signal(sent)
    (tmp_path / 'released').touch()
  else:
    (tmp_path / 'done').write_text('0')
  assert process.wait(30) == status
  assert (tmp_path / 'requeued').exists() == requeued
  if requeued:
    assert (tmp_path / 'requeued').read_text() == 'requeue 17\n'


@pytest.mark.parametrize(('sent', 'ends', 'restarts', 'status', 'requeued'), [
    ([signal.SIGUSR1], None, '90', 75, True),  # The time is over.
    ([signal.SIGTERM], None, '0', 75, False),  # scancel.
    ([signal.SIGUSR1, signal.SIGTERM], None, '0', 75, False),
    ([], 75, '', 75, True),  # Another process was lost.
    ([], 75, '19', 75, True), ([], 75, '20', 75, False),
    ([], 0, '', 0, False), ([], 2, '', 2, False), ([], 137, '', 137, False),
])
def test_a_pod_is_queued_again_where_it_can_go_on(sent, ends, restarts, status, requeued, tmp_path):
  environment = {'SLURM_RESTART_COUNT': restarts} if restarts else {}
  process = begin(POD, tmp_path, '--workdir=a b', '--stages=train', SLURM_CPUS_PER_TASK='8',
                  **environment)
  assert wait_for(tmp_path / 'begun') == '-m launch --distributed --workdir=a b --stages=train\n'
  for number in sent:
    process.send_signal(number)
  (tmp_path / 'released').touch()
  if ends is not None:
    (tmp_path / 'done').write_text(f'{ends}')
  assert process.wait(30) == status
  assert (tmp_path / 'requeued').exists() == requeued
  # What the command of SLURM was given, and has of the environment.
  assert (tmp_path / 'srun.log').read_text() == '--kill-on-bad-exit=0 8\n'


def test_every_gpu_of_a_pod_has_a_process_that_sees_all_of_its_node():
  text = POD.read_text()
  options = dict(re.findall(r'^#SBATCH --([\w-]+)=(.*)$', text, re.MULTILINE))
  assert options['gres'] == f'gpu:{options["ntasks-per-node"]}'
  assert not {'gpus-per-task', 'gpu-bind', 'array'} & {*options}
  batch = int(options['nodes']) * int(options['ntasks-per-node'])
  assert 256 % batch == 0  # config.train.batch_size of ImageNet.


# Of JobSet v1alpha2: the fields of each object, as in its api/jobset/v1alpha2/jobset_types.go.
JOBSET = {
    'spec': {'replicatedJobs', 'network', 'successPolicy', 'failurePolicy', 'startupPolicy',
             'suspend', 'coordinator', 'managedBy', 'ttlSecondsAfterFinished',
             'volumeClaimPolicies'},
    'network': {'enableDNSHostnames', 'subdomain', 'publishNotReadyAddresses'},
    'failurePolicy': {'maxRestarts', 'restartStrategy', 'rules'},
    'rule': {'name', 'action', 'onJobFailureReasons', 'onJobFailureMessagePatterns',
             'targetReplicatedJobs'},
    'replicatedJob': {'name', 'groupName', 'replicas', 'template', 'dependsOn'}}


def test_the_jobset_has_fields_that_there_are_and_its_processes_meet(monkeypatch):
  jobset = yaml.safe_load((ROOT / 'docs' / 'jobset.yaml').read_text(encoding='utf-8'))
  assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  spec, name = jobset['spec'], jobset['metadata']['name']
  [replicated] = spec['replicatedJobs']
  [rule] = spec['failurePolicy']['rules']
  for kind, found in (('spec', spec), ('network', spec['network']), ('rule', rule),
                      ('failurePolicy', spec['failurePolicy']), ('replicatedJob', replicated)):
    assert {*found} <= JOBSET[kind]
  assert re.fullmatch('[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?', rule['name'])

  job = replicated['template']['spec']
  pod = job['template']['spec']
  [container] = pod['containers']
  shell, option = container['command']
  [script] = container['args']
  assert (shell, option) == ('bash', '-c') and '\n' not in script.strip()
  monkeypatch.setenv('JOB_COMPLETION_INDEX', '3')
  words = shlex.split(os.path.expandvars(script.removeprefix('exec ')))
  assert words[:3] == ['python', '-m', 'launch']
  given = dict(word[2:].split('=', 1) for word in words[3:])
  meeting = flags.parse(['launch', *words[3:]]).meeting
  assert (meeting.num_processes, meeting.process_id) == (4, 3)
  # One index for each process, and the name that the headless service gives the first one.
  assert job['completionMode'] == 'Indexed' and replicated['replicas'] == 1
  assert int(given['num_processes']) == job['completions'] == job['parallelism'] == 4
  assert given['process_id'] == '3'
  host, port = given['coordinator'].split(':')
  assert spec['network']['enableDNSHostnames']
  assert host == f'{name}-{replicated["name"]}-0-0.{spec["network"]["subdomain"]}'
  assert [int(port)] == [each['containerPort'] for each in container['ports']]
  assert {each['name'] for each in container['volumeMounts']} == {
      each['name'] for each in pod['volumes']}

  # A pod that fails fails the job, and so all begin again, but for what no restart mends.
  assert (job['backoffLimit'], pod['restartPolicy']) == (0, 'Never')
  [failure] = job['podFailurePolicy']['rules']
  assert failure['action'] == 'FailJob' and rule['action'] == 'FailJobSet'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  assert failure['onExitCodes']['containerName'] == container['name']
  final = {failure['onExitCodes']['operator']: failure['onExitCodes']['values']}
  assert final == {'In': [UserError.exit_status, NonFiniteLossError.exit_status, 4, 5]}
  assert not {interrupts.Interrupted.exit_status, NotMetError.exit_status} & {*final['In']}
  assert spec['failurePolicy']['maxRestarts'] > 0
