"""Checkpoints that are whole or noticed, signals, locks: what an interrupted run relies on."""

import functools
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from robust_jax import models, stages, training, workdir
from robust_jax.config import sections
from robust_jax.errors import UserError
from robust_jax.workdir import checkpoint, interrupts

ROOT = Path(__file__).parents[1]
INFO = {'model': {'name': 'mlp', 'hidden': [8]}, 'num_classes': 3, 'mean': [0.5], 'std': 0.25}


@functools.cache
def fresh_variables():
  return models.init(jax.random.key(0), models.create('mlp', 3, hidden=(8,)), (4, 4, 1))


def make_state(step=0, scale=1., ema=False):
  variables = jax.tree.map(lambda leaf: scale * leaf, fresh_variables())
  optimizer = optax.chain(optax.identity(), optax.sgd(0.1, momentum=0.9))
  state = training.create_state(variables, optimizer, ema=ema,
                                memory={'radius': jnp.arange(5.)})
  return state._replace(step=jnp.asarray(step, jnp.int32))


def save(folder, *steps, **kwargs):
  with checkpoint.manager(folder, keep=len(steps)) as checkpoints:
    for step in steps:
      checkpoint.save(checkpoints, make_state(step, scale=step, **kwargs), INFO,
                      progress={'loss': 0.1 * step})


def restore(folder, state=None):
  with checkpoint.manager(folder, keep=9):
    return checkpoint.restore(folder, state or make_state())


def sealed_files(folder, step):
  """The files that hold something, and their contents."""
  files = (folder / 'checkpoints' / f'step_{step}').glob('*/**/*')
  return {path: path.read_bytes() for path in sorted(files) if path.is_file()}


@pytest.mark.parametrize('ema', [False, True])
def test_a_state_comes_back_as_it_was(ema, tmp_path):
  assert restore(tmp_path) is None
  save(tmp_path, 1, 3, ema=ema)
  state, progress = restore(tmp_path, make_state(ema=ema))
  jax.tree.map(np.testing.assert_array_equal, state, make_state(3, scale=3, ema=ema))
  assert progress == {'loss': 0.1 * 3}
  network, variables, info = checkpoint.load(tmp_path)
  assert info == {**INFO, 'step': 3, 'sha256': info['sha256']}
  images = np.random.default_rng(0).uniform(size=(2, 4, 4, 1)).astype(np.float32)
  expected = models.logits_fn(models.create('mlp', 3, hidden=(8,)),
                              make_state(3, scale=3).variables, mean=0.5, std=0.25)(images)
  np.testing.assert_array_equal(network.eval_logits(variables)(images), expected)
  other = checkpoint.load(tmp_path, step=1)[2]
  assert other['step'] == 1 and other['sha256'] != info['sha256']


def test_the_average_is_what_is_loaded(tmp_path):
  state = make_state(2, ema=True)
  state = state._replace(ema=jax.tree.map(lambda leaf: leaf + 1, state.ema))
  with checkpoint.manager(tmp_path) as checkpoints:
    checkpoint.save(checkpoints, state, INFO)
  _, variables, _ = checkpoint.load(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, variables['params'], state.ema['params'])


def test_flipped_bits_and_truncations_are_noticed_everywhere(tmp_path, capsys):
  save(tmp_path, 7)
  files = sealed_files(tmp_path, 7)
  rng = random.Random(0)
  # Every file at least once; the large ones, which hold the leaves, more often.
  paths = [*files, *rng.choices(list(files), [len(data) for data in files.values()], k=20)]
  for path in paths:
    data = files[path]
    place = rng.randrange(len(data))
    path.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)])
                     + data[place + 1:])
    assert path.name in checkpoint.find_damage(tmp_path, 7)
    with pytest.raises(UserError, match='step_7 damaged'):
      checkpoint.load(tmp_path)
    path.write_bytes(data[:rng.randrange(len(data))])
    assert checkpoint.find_damage(tmp_path, 7)
    path.unlink()
    assert 'is missing' in checkpoint.find_damage(tmp_path, 7)
    path.write_bytes(data)
  assert checkpoint.find_damage(tmp_path, 7) is None
  assert 'sha256 of' in capsys.readouterr().err


@pytest.mark.parametrize('keep', [lambda line: '/d/' not in line, lambda line: False])
def test_sums_that_lack_files_are_damaged_too(keep, tmp_path):
  save(tmp_path, 7)
  sums = tmp_path / 'checkpoints' / 'step_7' / 'sha256sums'
  sums.write_text(''.join(filter(keep, sums.read_text().splitlines(keepends=True))))
  assert 'is not in sha256sums' in checkpoint.find_damage(tmp_path, 7)
  sums.unlink()
  assert 'sha256sums cannot be read' in checkpoint.find_damage(tmp_path, 7)


@pytest.mark.parametrize('name', ['.DS_Store', 'd/.nfs0001'])
def test_hidden_files_of_the_system_are_no_damage(name, tmp_path):
  save(tmp_path, 7)
  (tmp_path / 'checkpoints' / 'step_7' / 'state' / name).write_text('not ours')
  assert checkpoint.find_damage(tmp_path, 7) is None


def test_the_one_before_a_damaged_checkpoint_is_used(tmp_path, capsys):
  save(tmp_path, 1, 2, 3)
  for step in (2, 3):
    path, data = max(sealed_files(tmp_path, step).items(), key=lambda item: len(item[1]))
    path.write_bytes(data[:-1])
  assert checkpoint.load(tmp_path)[2]['step'] == 1
  assert checkpoint.latest_step(tmp_path) == 3
  state, _ = restore(tmp_path)
  assert int(state.step) == 1
  printed = capsys.readouterr().err
  assert 'step_3 is damaged' in printed and 'step_2 is damaged' in printed
  aside = sorted(path.name.partition('-')[0] for path in (tmp_path / 'damaged').iterdir())
  assert aside == ['step_2', 'step_3'] and checkpoint.latest_step(tmp_path) == 1
  save(tmp_path, 2)  # The same step can be saved anew.
  assert checkpoint.find_damage(tmp_path, 2) is None


def test_another_structure_is_named(tmp_path):
  save(tmp_path, 1)
  with pytest.raises(UserError, match='step_1 lacks ema/params/'):
    restore(tmp_path, make_state(ema=True))
  save(tmp_path, 2, ema=True)
  with pytest.raises(UserError, match='step_2 has ema/params/'):
    restore(tmp_path, make_state())


def test_the_newest_and_the_best_are_kept(tmp_path):
  with checkpoint.manager(tmp_path, keep=2, keep_best=True) as checkpoints:
    for step, accuracy in [(1, 0.3), (2, 0.9), (3, None), (4, 0.5), (5, None)]:
      checkpoint.save(checkpoints, make_state(step), INFO, accuracy=accuracy)
      checkpoint.wait(checkpoints)
    assert checkpoints.all_steps() == [2, 4, 5]
  assert checkpoint.load(tmp_path, step='best')[2]['step'] == 2
  assert checkpoint.load(tmp_path)[2]['step'] == 5
  save(tmp_path / 'other', 1)
  with pytest.raises(UserError, match='keep_best'):
    checkpoint.load(tmp_path / 'other', step='best')
  # Which one is the best is not for a damaged file to say, and it does not stop a resume.
  metrics = tmp_path / 'checkpoints' / 'step_2' / 'metrics' / 'metrics'
  for text in ('{"accuracy": 0.1}', '{"accu'):
    metrics.write_text(text)
    with pytest.raises(UserError, match='step_2 is damaged'):
      checkpoint.load(tmp_path, step='best')
  state, _ = restore(tmp_path, make_state())
  assert int(state.step) == 5 and (tmp_path / 'damaged').is_dir()


@pytest.fixture
def full_disk():
  """No file of this process may grow beyond 2,000 bytes, as on a disk that is full."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
  resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_last_checkpoint(full_disk, tmp_path):
  save(tmp_path, 1)
  message = 'cannot be written .* The newest whole one is step 1'
  with pytest.raises(UserError, match=message), checkpoint.manager(tmp_path) as checkpoints:
    full_disk()
    checkpoint.save(checkpoints, make_state(2), INFO)
  assert checkpoint.find_damage(tmp_path, 1) is None
  assert checkpoint.latest_step(tmp_path) == 1


def test_a_workdir_survives_a_full_disk_at_its_first_file(full_disk, tmp_path):
  with pytest.raises(UserError, match='no room left'), workdir.locked(tmp_path):
    full_disk()
    workdir.write_json(tmp_path / 'config.json', ['x' * 5000])
  with workdir.locked(tmp_path):
    sections.check_workdir(tmp_path, {})


def test_an_interrupted_redo_is_finished_by_the_next_run(tmp_path, monkeypatch):
  records = {stage: {'status': 'done', 'config': {}} for stage in ('train', 'certify')}
  workdir.write_json(tmp_path / 'stages.json', records)
  for name in ('metrics.jsonl', 'certify.jsonl', 'certify.tsv'):
    (tmp_path / name).write_text('old')

  def interrupted(source, destination):
    if Path(source).name == 'certify.tsv':
      raise interrupts.Interrupted
    shutil.copy(source, destination)
    Path(source).unlink()

  with monkeypatch.context() as patch, pytest.raises(interrupts.Interrupted):
    patch.setattr(shutil, 'move', interrupted)
    workdir.set_aside(tmp_path, ['certify'])
  assert workdir.stages(tmp_path)['certify']['status'] != 'done'
  workdir.set_aside(tmp_path, [])
  assert workdir.stages(tmp_path) == {'train': records['train']}
  assert not (tmp_path / 'certify.tsv').exists() and (tmp_path / 'metrics.jsonl').exists()


def test_a_stage_without_results_binds_nothing(tmp_path):
  old, new = ({**json.loads(json.dumps(sections.resolve(base.get_config()))), 'seed': seed}
              for seed in (0, 1))
  workdir.write_json(tmp_path / 'config.json', old)
  workdir.write_json(tmp_path / 'stages.json', {'certify': {'status': 'running', 'config': old}})
  sections.check_workdir(tmp_path, new)
  (tmp_path / 'certify.jsonl').touch()
  with pytest.raises(UserError, match='config.seed .*0.*1'):
    sections.check_workdir(tmp_path, new)


@pytest.mark.parametrize('stage', ['attack', 'certify'])
def test_another_certificate_has_a_workdir_of_its_own(stage, tmp_path):
  old = json.loads(json.dumps(sections.resolve(base.get_config())))
  workdir.write_json(tmp_path / 'config.json', old)
  workdir.write_json(tmp_path / 'stages.json', {stage: {'status': 'done', 'config': old}})
  (tmp_path / f'{stage}.jsonl').touch()
  other = {**old, 'certify': {**old['certify'], 'sigma': 0.12}}
  recipe = f'--config.weights={tmp_path} --stages=certify,report --workdir=OTHER'
  with pytest.raises(UserError, match=f'config.certify.sigma .*--redo={stage}.*{recipe}$'):
    sections.check_workdir(tmp_path, other)
  with pytest.raises(UserError, match=f'--redo={stage}$'):
    sections.check_workdir(tmp_path, {**other, 'seed': 1})


def test_a_workdir_is_used_by_one_run(tmp_path):
  folder = tmp_path / 'new'
  with workdir.locked(folder):
    words = [sys.executable, '-m', 'launch', '--config=digits:pgd', f'--workdir={folder}']
    second = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
  assert second.returncode == 2
  assert f'{folder}, which is in use (process ' in second.stderr
  assert second.stderr.count('\n') == 1
  assert not folder.exists()  # Nothing came of it.
  folder.mkdir()
  with workdir.locked(folder):
    sections.check_workdir(folder, {})  # The lock alone does not make it a foreign folder.
  assert folder.exists()
  file = tmp_path / 'file'
  file.touch()
  with pytest.raises(UserError, match='a folder that can be written'), workdir.locked(file):
    pass


def test_a_postponed_signal_waits():
  before = signal.getsignal(signal.SIGTERM)
  with interrupts.postponed() as request:
    assert request.signal is None
  assert signal.getsignal(signal.SIGTERM) is before
  try:
    with interrupts.postponed() as request:
      signal.raise_signal(signal.SIGTERM)
      assert request.signal is signal.SIGTERM
      assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
  finally:
    signal.signal(signal.SIGTERM, before)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize('body', ['interrupts.raise_interrupted()',
                                  'stack.enter_context(interrupts.postponed())'])
def test_a_second_signal_ends_at_once(body):
  code = f'''
import contextlib, time
from robust_jax.workdir import interrupts
with contextlib.ExitStack() as stack:
  {body}
  while True:
    try:
      print('ready', flush=True)
      time.sleep(60)
    except interrupts.Interrupted as error:
      print(error, flush=True)
'''
  process = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(signal.SIGINT)
  assert 'SIGINT' in process.stdout.readline()
  assert process.poll() is None
  process.send_signal(signal.SIGTERM)
  assert process.wait(10) == -signal.SIGTERM


def test_a_stage_that_was_skipped_runs_when_it_can(tmp_path, monkeypatch):
  run = types.SimpleNamespace(config={}, devices=jax.devices()[:1])
  (tmp_path / 'config.json').write_text('{}')
  calls = []
  monkeypatch.setitem(stages.STAGES, 'certify', lambda *args: calls.append(args) or {})
  for _ in range(2):
    stages.run_stage('certify', run, tmp_path)
  assert len(calls) == 2 and workdir.stages(tmp_path)['certify']['status'] == 'done'
