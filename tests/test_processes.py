"""Several processes that compute as one run: real ones, on this machine."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from kill_and_resume import differences, results

from launch import agreement, flags
from robust_jax import data, errors, workdir
from robust_jax.config import experiment, sections
from robust_jax.data import batches
from robust_jax.devices import choose, parallel, processes
from robust_jax.workdir import checkpoint

ROOT = Path(__file__).parents[1]
# Everything at once: BatchNorm, a memory of each example, an average of parameters, accumulation.
WORDS = ['--config=configs/digits.py:iaat_smoothadv', '--config.model.name=small_network:Net',
         '--config.train.batch_size=96', '--config.train.accumulation=2',
         '--config.train.eval_batch_size=96', '--config.train.ema_decay=0.9',
         '--config.train.num_steps=6', '--config.train.log_every=2',
         '--config.train.checkpoint_every=2', '--config.method.warmup_epochs=0',
         '--config.method.attack.num_steps=1', '--config.attack.num_steps=2',
         '--config.evaluation.batch_size=8', '--config.evaluation.num_images=6',
         '--config.evaluation.epsilons=(0.5,)', '--config.evaluation.n=50',
         '--config.certify.n=200', '--config.certify.batch_size=100',
         '--config.certify_images.num_images=5', '--config.sandwich.num_steps=2']


def free_port():
  with socket.socket() as bound:
    bound.bind(('127.0.0.1', 0))
    return bound.getsockname()[1]


def start(folder, number, total, port, *words, devices=1, path=ROOT, cwd=ROOT):
  environment = {**os.environ, 'XLA_FLAGS': '--xla_backend_optimization_level=0',
                 'PYTHONPATH': f'{path}:{ROOT}:{ROOT / "tests"}'}
  place = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={total}',
           f'--process_id={number}'] if total else []
  return subprocess.Popen(
      [sys.executable, '-m', 'launch', f'--workdir={folder}', f'--devices={devices}', *place,
       *words], cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def launch(folder, total, *words, devices=1, more=None):
  """[(status, output, errors)] of all processes; `more`: words of process 1 alone."""
  port = free_port()
  started = [start(folder, number, total, port, *words, *(more or [] if number == 1 else []),
                   devices=devices) for number in range(max(total, 1))]
  outputs = [process.communicate(timeout=300) for process in started]
  return [(process.returncode, *output) for process, output in zip(started, outputs)]


def last_lines(ended):
  """[(status, last line of standard error)]"""
  return [(status, text.strip().splitlines()[-1]) for status, _, text in ended]


def everything(folder):
  found = results(folder)
  with np.load(folder / 'radii.npz') as radii:
    found['radii'] = {**radii}
  found['sandwich'] = [json.loads(line) for line in
                       (folder / 'sandwich.jsonl').read_text().splitlines()][1:]
  return found


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """{(processes, devices of each): folder} of the same run."""
  root = tmp_path_factory.mktemp('whole')
  found = {}
  for total, devices in ((0, 4), (2, 2), (4, 1)):
    folder = root / f'{total}x{devices}'
    ended = launch(folder, total, *WORDS, devices=devices)
    assert [status for status, _, _ in ended] == [0] * max(total, 1), ended
    for _, output, _ in ended[1:]:  # The first one speaks for all, but for what gloo prints.
      assert all(line.startswith('[Gloo]') for line in output.splitlines()), output
    found[total, devices] = folder
  return found


def test_processes_do_what_one_does(whole):
  two, four, one = (everything(whole[key]) for key in ((2, 2), (4, 1), (0, 4)))
  assert differences(two, four) == []  # Bit for bit.
  # Sums over devices come in another order within one process.
  for name in ('certify.jsonl', 'certify.tsv', 'attack.jsonl'):
    assert one[name] == two[name], name
  for ours, theirs in zip(one['metrics.jsonl'], two['metrics.jsonl'], strict=True):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
      assert value == theirs[name] or value == pytest.approx(theirs[name], rel=1e-4), name
  np.testing.assert_allclose(one['radii']['radius'], two['radii']['radius'], rtol=1e-5)
  (ours, _), (theirs, _) = one['step_6'], two['step_6']
  assert {'ema', 'memory', 'batch_stats'} <= {name.split('/')[0] for name in ours}
  for name in ours:
    np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-5, err_msg=name)
  assert workdir.read_json(whole[2, 2] / 'run.json')['num_processes'] == 2
  assert workdir.read_json(whole[2, 2] / 'run.json')['num_devices'] == 4


def wait_for_step(folder, step, process):
  deadline = time.monotonic() + 120
  while (checkpoint.latest_step(folder) or 0) < step:
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.05)


LONG = ['--stages=train', '--config.train.num_steps=200', '--config.train.num_epochs=40']


@pytest.mark.parametrize('number, lost', [
    (signal.SIGTERM, 1), (signal.SIGKILL, 1),
    pytest.param(signal.SIGKILL, 0, marks=pytest.mark.slow),
    pytest.param(signal.SIGSTOP, 1, marks=pytest.mark.slow)])
def test_where_one_ends_all_do_and_the_command_goes_on(tmp_path, number, lost):
  folder, port = tmp_path / 'run', free_port()
  started = [start(folder, i, 2, port, *WORDS, *LONG) for i in range(2)]
  try:
    wait_for_step(folder, 2, started[0])
    started[lost].send_signal(number)
    begun = time.monotonic()
    other = started[1 - lost]
    _, text = other.communicate(timeout=60)
    assert time.monotonic() - begun < 30
  finally:
    for process in started:
      if number in (signal.SIGSTOP, signal.SIGKILL):
        process.kill()
      process.communicate()
  assert other.returncode == 75 and text.strip().splitlines()[-1].startswith('interrupted: '), text
  kept = checkpoint.latest_step(folder)
  if number == signal.SIGTERM:
    assert started[lost].returncode == 75
    assert f'SIGTERM after step {kept}, which is saved' in text
  # On another number of devices and processes.
  (status, output, text), = launch(folder, 0, *WORDS, *LONG, devices=4)
  assert status == 0, text
  assert f'goes on from step {kept}' in output


def test_one_that_is_stuck_ends_all(tmp_path, monkeypatch):
  (tmp_path / 'copies').mkdir()
  monkeypatch.setenv('TMPDIR', str(tmp_path / 'copies'))
  (tmp_path / 'slow.py').write_text(
      'import time, jax\nfrom robust_jax.devices import processes\n'
      'from robust_jax.training import methods\n'
      'def wait(step):\n'
      '  if processes.index() == 1 and step > 2: time.sleep(60)\n'
      'def method(key, network, params, batch_stats, batch, progress):\n'
      '  jax.debug.callback(wait, progress.step)\n'
      '  return methods.standard(key, network, params, batch_stats, batch, progress)\n')
  port = free_port()
  started = [start(tmp_path / 'run', i, 2, port, '--config=configs/digits.py:gaussian',
                   '--config.method.name=slow:method', '--stages=train', '--step_timeout=4',
                   '--config.train.eval_every_epochs=1000', path=tmp_path) for i in range(2)]
  texts = [process.communicate(timeout=120)[1] for process in started]
  assert [process.returncode for process in started] == [75, 75], texts
  assert 'no step for 4 s (--step_timeout)' in texts[0]
  assert not [*(tmp_path / 'copies').glob('robust_jax-*')]


def test_a_slow_checkpoint_is_no_stuck_process_and_slow_input_is_named(tmp_path, monkeypatch):
  (tmp_path / 'slow.py').write_text(
      'import functools, time\nfrom robust_jax import data\n'
      'from robust_jax.devices import processes\nfrom robust_jax.training import methods\n'
      'from robust_jax.workdir import checkpoint\n'
      'save, batches = checkpoint.save, data.train_batches\n'
      'def slow_save(*args, **kwargs):\n'
      '  time.sleep(9 * (processes.index() == 0 and args[1].step == 4))\n'
      '  save(*args, **kwargs)\n'
      'def slow_batches(*args, **kwargs):\n'
      '  for batch in batches(*args, **kwargs):\n'
      '    time.sleep(0.2 * (processes.index() == 1))\n'
      '    yield batch\n'
      'checkpoint.save, data.train_batches = slow_save, slow_batches\n'
      'method = methods.standard\n')
  port, folder = free_port(), tmp_path / 'run'
  started = [start(folder, i, 2, port, '--config=configs/digits.py:gaussian',
                   '--config.method.name=slow:method', '--stages=train', '--step_timeout=4',
                   '--config.train.num_steps=8', '--config.train.log_every=4',
                   '--config.train.checkpoint_every=4', path=tmp_path) for i in range(2)]
  texts = [process.communicate(timeout=120)[1] for process in started]
  assert [process.returncode for process in started] == [0, 0], texts
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  last = [line for line in lines if line['split'] == 'train'][-1]
  assert last['slowest_process'] == 1 and last['slowest_input_wait'] > last['input_wait']


def test_what_differs_between_processes_is_named(tmp_path):
  folder = tmp_path / 'run'
  ended = launch(folder, 2, *WORDS, more=['--config.epsilon=0.3'])
  for status, line in last_lines(ended):
    assert status == 2
    assert 'config.epsilon' in line and '0.3' in line and 'process 1' in line
  assert not folder.exists()


def test_a_folder_that_is_not_shared_is_noticed(tmp_path):
  """Each process has its own folder `run`, as on machines without a common file system."""
  config = tmp_path / 'hasty.py'
  config.write_text('from configs.digits import pgd as get_config\n'
                    'from robust_jax.devices import processes\nprocesses._SHOWING = 5\n')
  port, started = free_port(), []
  for number in range(2):
    own = tmp_path / f'machine{number}'
    own.mkdir()
    started.append(start('run', number, 2, port, f'--config={config}', cwd=own))
  ended = [(*process.communicate(timeout=120), process.returncode) for process in started]
  for _, text, status in ended:
    assert status == 2 and '--workdir must be one folder that all processes see' in text, ended


@pytest.mark.parametrize('words, parts', [
    (['--process_id=1', '--num_processes=2'], ['--coordinator']),
    (['--coordinator=host:1', '--num_processes=2'], ['--process_id']),
    (['--coordinator=host:1', '--num_processes=2', '--process_id=2'],
     ['--process_id', '0 to 1', '2']),
    (['--coordinator=host', '--num_processes=2', '--process_id=1'], ['--coordinator', 'host']),
    (['--distributed', '--process_id=1'], ['--process_id', '--distributed']),
    (['--distributed', '--redo=train'], ['--redo', '--workdir']),
    (['--distributed', '--sweep', '--config.seed=0,1'], ['--sweep'])])
def test_flags_that_do_not_go_together(words, parts):
  with pytest.raises(errors.UserError) as caught:
    flags.parse(['launch', '--config=configs/digits.py:smoothadv', *words])
  assert all(part in str(caught.value) for part in parts), caught.value


def test_there_is_nobody_to_meet(tmp_path):
  (status, _, text), = launch(tmp_path / 'run', 0, *WORDS, '--distributed')
  assert status == 2 and '--distributed' in text.strip().splitlines()[-1]


def test_where_nobody_listens_the_coordinator_is_named(monkeypatch):
  monkeypatch.setattr(processes, '_MEETING', 0)
  for host in ('nosuch.invalid', '127.0.0.1'):
    at = f'{host}:{free_port()}'
    with pytest.raises(errors.NotMetError, match=f'^--coordinator is {at}: nobody answers'):
      processes._reach(at, f'--coordinator is {at}')


def test_rows_of_the_processes_one_after_the_other_are_the_batch():
  dataset = data.load('digits', 'train')
  read = lambda **kwargs: next(batches.train_batches(dataset, batch_size=12, seed=0, num_steps=3,
                                                     augment='crop', **kwargs))
  parts = [read(host=host, num_hosts=3) for host in range(3)]
  joined = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
  jax.tree.map(np.testing.assert_array_equal, joined, read())


class Device:
  platform, device_kind = 'cpu', 'cpu'

  def __init__(self, process, number):
    self.process_index, self.id = process, number


def test_places_of_own_devices(monkeypatch):
  devices = [Device(process, number) for process in range(2) for number in range(3)]
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  assert parallel.own(devices) == devices[3:]
  assert parallel.numbers(devices).tolist() == [3, 4, 5]


def as_process_0_of(monkeypatch, others):
  """Makes `exchange` return what process 0 says, and what `others` make of it."""
  monkeypatch.setattr(processes, 'count', lambda: 1 + len(others))
  monkeypatch.setattr(processes, 'exchange', lambda topic, value: [
      value, *(other(json.loads(json.dumps(value))) for other in others)])


def test_other_versions_are_refused(monkeypatch):
  as_process_0_of(monkeypatch, [lambda own: {**own, 'the version of jax': '0.0.1'}])
  given = flags.parse(['launch', '--config=configs/digits.py:pgd'])
  with pytest.raises(errors.UserError, match='version of jax .*0.0.1 in process 1'):
    agreement.check_command(given)


@pytest.mark.parametrize('name', ['XLA_FLAGS', 'jax_default_matmul_precision', 'ROBUST_JAX_CPU'])
def test_other_settings_are_refused(monkeypatch, name):
  devices = jax.devices()  # XLA reads the flags when it begins.
  monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=3 --xla_b --xla_a=1')
  as_process_0_of(monkeypatch, [lambda own: own, lambda own: {**own, name: 'another'}])
  with pytest.raises(errors.UserError, match=f'^{name} must .*another in process 2'):
    agreement.check_environment(devices)


def test_other_code_is_refused(monkeypatch):
  as_process_0_of(monkeypatch, [lambda own: {
      name: 'another' if 'code' in name else value for name, value in own.items()}])
  with pytest.raises(errors.UserError, match='code of robust_jax .*another in process 1'):
    agreement.check_command(flags.parse(['launch', '--config=configs/digits.py:pgd']))


def test_files_of_process_0_that_show_late_are_waited_for(monkeypatch, tmp_path):
  """A copy has what process 0 had told of, not what the folder shows at first."""
  (tmp_path / workdir.LOCK).write_text('process 0')
  (tmp_path / 'slurm.out').write_text('grows')  # No file of the run's.
  (tmp_path / 'stages.json').write_text('old')
  new = {'stages.json': hashlib.sha256(b'new').hexdigest()}
  monkeypatch.setattr(processes, 'index', lambda: 1)
  monkeypatch.setattr(processes, 'hear', lambda topic: ['process 0', new])
  looks = iter(range(3))

  def wait(seconds):
    if next(looks) == 2:
      (tmp_path / 'stages.json').write_text('new')

  monkeypatch.setattr(processes.time, 'sleep', wait)
  with (pytest.raises(errors.UserError, match=f'^{tmp_path}/stages.json is'),
        workdir.copied(tmp_path) as copy):
    assert (copy / 'stages.json').read_text() == 'new'
    raise errors.UserError(f'{copy}/stages.json is wrong')


def test_checkpoints_that_never_show_are_an_error(monkeypatch, tmp_path):
  monkeypatch.setattr(processes, 'index', lambda: 1)
  monkeypatch.setattr(processes, 'count', lambda: 2)
  monkeypatch.setattr(processes, '_SHOWING', 0)
  monkeypatch.setattr(processes, 'of_first', lambda topic, find: {'8': 'sums'})
  with pytest.raises(errors.UserError, match=r'has steps \[\] on .* in process 0 \[8\]'):
    checkpoint.in_sight(tmp_path, 'train')


@pytest.mark.parametrize('split', ['test', 'train'])
def test_other_data_are_refused(monkeypatch, split):
  run = experiment.build(sections.resolve(
      flags.parse(['launch', '--config=configs/digits.py:pgd']).config), jax.devices()[:1])

  def changed(own):
    name = next(name for name in own if split in name)
    return {**own, name: [own[name][0], 'another', own[name][2]]}

  as_process_0_of(monkeypatch, [changed])
  with pytest.raises(errors.UserError, match=f'{split} split.*process 1'):
    agreement.check_data(run, {'train'})
  as_process_0_of(monkeypatch, [lambda own: own])
  agreement.check_data(run, {'train'})


def test_other_files_of_functions_are_refused(monkeypatch):
  given = flags.parse(['launch', '--config=configs/digits.py:pgd',
                       '--config.model.name=small_network:Net'])
  run = experiment.build(sections.resolve(given.config), jax.devices()[:1])
  as_process_0_of(monkeypatch, [lambda own: {
      name: 'another' if 'model.name' in name else value for name, value in own.items()}])
  with pytest.raises(errors.UserError, match='config.model.name .*process 1'):
    agreement.check_data(run, {'train'})


def test_processes_must_have_as_many_devices(monkeypatch):
  as_process_0_of(monkeypatch, [lambda own: own + 1])
  with pytest.raises(errors.UserError, match='--devices.*in process 1'):
    choose.choose_devices(2, [8])


def test_weights_are_told_apart(tmp_path):
  (tmp_path / 'a.pth').write_bytes(b'1')
  (tmp_path / 'b.pth').write_bytes(b'2')
  assert workdir.fingerprint(tmp_path / 'a.pth') != workdir.fingerprint(tmp_path / 'b.pth')
  assert workdir.fingerprint(tmp_path) is None
