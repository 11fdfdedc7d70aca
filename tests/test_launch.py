"""The launcher end to end on digits: one real run, interrupted and not, and its mistakes."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_imagenet

from launch import flags
from robust_jax import models, stages, training, workdir
from robust_jax.certification import log
from robust_jax.config import experiment, sections
from robust_jax.errors import NonFiniteLossError, UserError
from robust_jax.workdir import checkpoint, interrupts, monitoring

ROOT = Path(__file__).parents[1]
SMALL = ['--config.train.num_epochs=4', '--config.train.checkpoint_every=20',
         '--config.train.eval_every_epochs=2', '--config.schedule.learning_rate=0.05',
         '--config.method.epsilon_warmup_epochs=1', '--config.attack.num_steps=3',
         '--config.evaluation.num_noise=4', '--config.evaluation.num_images=40',
         '--config.evaluation.batch_size=20', '--config.evaluation.n=200',
         '--config.evaluation.epsilons=(0.25, 0.75)', '--config.certify_images.num_images=24',
         '--config.certify_images.images_per_call=6', '--config.certify.n=1000']


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('tfds')


@pytest.fixture(scope='module')
def environment(data_dir):
  kept = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  return {**kept, 'TFDS_DATA_DIR': str(data_dir), 'JAX_PLATFORMS': 'cpu'}


def launch(environment, folder, *words):
  return subprocess.run(
      [sys.executable, '-m', 'launch', f'--workdir={folder}', *words], cwd=ROOT, env=environment,
      capture_output=True, text=True)


def launch_and_kill(environment, folder, ready, *words, number=signal.SIGKILL):
  """Starts a run and sends it a signal as soon as ready(folder) holds."""
  process = subprocess.Popen(
      [sys.executable, '-m', 'launch', f'--workdir={folder}', *words], cwd=ROOT, env=environment,
      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  deadline = time.monotonic() + 240
  while process.poll() is None and time.monotonic() < deadline and not ready(folder):
    time.sleep(0.02)
  assert ready(folder), 'the run did not come so far'
  process.send_signal(number)
  expected = -signal.SIGKILL if number == signal.SIGKILL else interrupts.Interrupted.exit_status
  assert process.wait() == expected, 'the run ended before it could be interrupted'


@pytest.fixture(scope='module')
def finished(environment, tmp_path_factory):
  """The workdir of an undisturbed run, and what it printed."""
  folder = tmp_path_factory.mktemp('runs') / 'undisturbed'
  result = launch(environment, folder, *SMALL)
  assert result.returncode == 0, result.stderr
  return folder, result.stdout


def metrics(folder):
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in line.items() if k not in monitoring.MEASURED} for line in lines]


def test_a_run_leaves_all_its_files(finished):
  folder, printed = finished
  assert {'config.json', 'run.json', 'stages.json', 'metrics.jsonl', 'checkpoints', 'attack.jsonl',
          'gallery.npz', 'certify.jsonl', 'certify.tsv', 'sandwich.jsonl', 'report.html',
          'tables'} <= {
              path.name for path in folder.iterdir()}
  assert 'Certified accuracy' in printed and str(folder / 'report.html') in printed
  status = {name: record['status'] for name, record in workdir.stages(folder).items()}
  assert status == {'train': 'done', 'attack': 'done', 'certify': 'done', 'sandwich': 'done'}
  network = workdir.stages(folder)['certify']['network']
  assert network['num_images'] == 24 and network['accuracy'] > 0.5
  with np.load(folder / 'gallery.npz') as gallery:
    for name in ('clean_confidence', 'confidence'):
      assert gallery[name].shape == (8,) and (gallery[name] > 0.1).all()
      assert (gallery[name] <= 1).all() and (200 * gallery[name] % 1 < 1e-6).all()


def test_a_run_learns_and_its_certificates_hold_together(finished):
  folder, _ = finished
  tests = [line for line in metrics(folder) if line['split'] == 'test']
  assert tests[-1]['accuracy'] > 0.5 and tests[-1]['loss'] < tests[0]['loss']
  certified = log.read(folder / 'certify.jsonl')
  assert len(certified.idx) == 24 and certified.correct.mean() > 0.5
  assert (certified.radius[certified.predict < 0] == 0).all()
  lines = [json.loads(line) for line in (folder / 'certify.jsonl').read_text().splitlines()[1:]]
  assert all(sum(line['counts']) == 1000 and sum(line['counts0']) == 100 for line in lines)
  settings = certified.settings
  assert settings['sigma'] == 0.25 and settings['n'] == 1000 and settings['seed'] == 0
  table = log.read(folder / 'certify.tsv')
  np.testing.assert_array_equal(table.predict, certified.predict)
  assert (table.radius <= certified.radius).all()


def test_finished_stages_are_not_redone(environment, finished):
  folder, _ = finished
  before = {name: (folder / name).stat().st_mtime_ns for name in ('certify.jsonl', 'attack.jsonl')}
  result = launch(environment, folder)  # The config is the workdir's own.
  assert result.returncode == 0, result.stderr
  assert result.stdout.count('done already') == 4
  assert before == {name: (folder / name).stat().st_mtime_ns for name in before}


def test_an_interrupted_run_goes_on_and_ends_the_same(environment, finished, tmp_path):
  undisturbed, _ = finished
  folder = tmp_path / 'interrupted'
  saved = lambda step: lambda f: (f / 'checkpoints' / f'step_{step}').exists()
  launch_and_kill(environment, folder, saved(20), *SMALL, '--stages=train', number=signal.SIGTERM)
  assert workdir.stages(folder)['train']['status'] == 'running'
  assert checkpoint.latest_step(folder) % 20, 'the signal did not save the step that it met'
  launch_and_kill(environment, folder, saved(40), '--stages=train')
  has_lines = lambda path: path.exists() and len(path.read_text().splitlines()) > 1
  launch_and_kill(environment, folder, lambda f: has_lines(f / 'attack.jsonl'))
  launch_and_kill(environment, folder, lambda f: has_lines(f / 'certify.jsonl'))
  half = (folder / 'certify.jsonl').read_text()
  result = launch(environment, folder)
  assert result.returncode == 0, result.stderr
  assert (folder / 'certify.jsonl').read_text().startswith(half[:half.rindex('\n') + 1])
  assert metrics(folder) == metrics(undisturbed)
  one, two = (checkpoint.load(f)[1] for f in (undisturbed, folder))
  jax.tree.map(np.testing.assert_array_equal, one, two)
  attacks = [(f / 'attack.jsonl').read_text() for f in (undisturbed, folder)]
  assert attacks[0] == attacks[1]
  galleries = [np.load(f / 'gallery.npz') for f in (undisturbed, folder)]
  np.testing.assert_array_equal(galleries[0]['adversarial'], galleries[1]['adversarial'])
  one, two = (log.read(f / 'certify.jsonl') for f in (undisturbed, folder))
  for name in ('idx', 'label', 'predict', 'radius', 'correct'):
    np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_redo_keeps_the_old_results(environment, finished):
  folder, _ = finished
  result = launch(environment, folder, '--stages=certify', '--redo=certify',
                  '--config.certify.n=500')
  assert result.returncode == 0, result.stderr
  assert log.read(folder / 'certify.jsonl').settings['n'] == 500
  old, = (folder / 'previous').iterdir()
  assert log.read(old / 'certify.jsonl').settings['n'] == 1000
  assert (old / 'report.html').exists() and not (folder / 'report.html').exists()


@pytest.mark.parametrize('words, message', [
    (['--config.epsilon=0.75'], 'config.epsilon was 0.5, is 0.75'),
    (['--config.epsilon=0.75', '--redo=attack'], 'config.epsilon was 0.5, is 0.75'),
    (['--config.certify.sigma=1.0', '--redo=certify'], 'the attack stage ran with another config'),
    (['--stages=certify', '--config.evaluation.n=5'], 'config.evaluation.n was 200, is 5'),
    (['--config.data.data_dir=/nowhere/at/all', '--config.data.name=mnist', '--redo=train'],
     "config.data.data_dir is '/nowhere/at/all'"),
])
def test_mistakes_end_with_status_2_and_change_nothing(words, message, environment, finished):
  folder, _ = finished
  times = lambda: sorted((path, path.stat().st_mtime_ns) for path in folder.rglob('*')
                         if path.is_file() and path.name != workdir.LOCK)
  before = times()
  result = launch(environment, folder, *words)
  assert result.returncode == 2
  assert result.stderr.startswith('error: ') and result.stderr.count('\n') == 1
  assert message in result.stderr
  assert times() == before


def test_foreign_folders_are_refused(tmp_path):
  (tmp_path / 'thesis.tex').touch()
  with pytest.raises(UserError, match='which holds thesis.tex but no config.json'):
    sections.check_workdir(tmp_path, {})
  (tmp_path / 'thesis.tex').unlink()
  sections.check_workdir(tmp_path, {})
  with pytest.raises(UserError, match='has no checkpoint'):
    checkpoint.load(tmp_path)


@pytest.fixture
def run(monkeypatch, data_dir):
  monkeypatch.chdir(ROOT)
  config = flags.parse(['launch', '--config.train.num_epochs=1', *SMALL[1:]]).config
  config.data.data_dir = str(data_dir)
  config.train.checkpoint_every = 5
  return experiment.build(sections.resolve(config), jax.devices()[:2])


def test_nan_loss_keeps_the_last_good_checkpoint(run, tmp_path):
  def explode(key, network, params, batch_stats, batch, progress, **_):
    output = run.method(key, network, params, batch_stats, batch, progress)
    return output._replace(loss=output.loss * jnp.where(progress.step >= 12, jnp.nan, 1.))

  broken = dataclasses.replace(run, method=functools.partial(explode, **run.method.keywords))
  with pytest.raises(NonFiniteLossError, match='step 15'):
    stages.STAGES['train'](broken, tmp_path)
  assert checkpoint.latest_step(tmp_path) == 10
  _, variables, info = checkpoint.load(tmp_path)
  assert info['step'] == 10
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
  assert NonFiniteLossError.exit_status == 3


def test_a_loaded_checkpoint_is_the_trained_network(run, tmp_path):
  stages.STAGES['train'](run, tmp_path)
  network, variables, info = checkpoint.load(tmp_path)
  assert info['sigma'] == info['training_noise'] == 0.25
  assert info['image_shape'] == [8, 8, 1] and info['step'] == 23
  with checkpoint.manager(tmp_path):
    template = training.create_state(models.init(run.key('init'), run.model, (8, 8, 1)),
                                     run.optimizer())
    state, _ = checkpoint.restore(tmp_path, template)
  images = run.test_data.images[:64] / np.float32(255)
  np.testing.assert_array_equal(network.eval_logits(variables)(images),
                                run.network.eval_logits(state.variables)(images))
  assert np.any(np.asarray(jax.tree.leaves(state.params)[0])
                != np.asarray(jax.tree.leaves(template.params)[0]))
  with pytest.raises(UserError, match='step .*23.* 3'):
    checkpoint.load(tmp_path, step=3)


def test_later_stages_need_a_finished_training(run, tmp_path):
  with pytest.raises(UserError, match='run the train stage first'):
    stages.check(run, tmp_path, {'certify', 'report'})
  stages.check(run, tmp_path, {'train', 'certify'})
  workdir.write_json(tmp_path / 'stages.json', {'train': {'status': 'done', 'last_step': 23}})
  with pytest.raises(UserError, match='step 23, is damaged .it is not there.'):
    stages.check(run, tmp_path, {'certify'})


def test_a_training_with_a_damaged_end_is_finished_again(run, tmp_path, capsys):
  stages.run_stage('train', run, tmp_path)
  _, variables, _ = checkpoint.load(tmp_path)
  for file in (tmp_path / 'checkpoints' / 'step_23' / 'state' / 'd').iterdir():
    file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(UserError, match='--stages=train makes it again'):
    stages.check(run, tmp_path, {'attack'})
  stages.run_stage('train', run, tmp_path)
  assert 'step 23, is damaged' in capsys.readouterr().err
  _, again, info = checkpoint.load(tmp_path)
  assert info['step'] == 23
  jax.tree.map(np.testing.assert_array_equal, again, variables)
  stages.run_stage('train', run, tmp_path)
  assert 'done already' in capsys.readouterr().out


@pytest.mark.slow
def test_imagenet_trains_resumes_and_certifies(environment, tmp_path):
  """The owner's command, ResNet-50 included, on a made-up dataset in the files of the real one."""
  tiny_imagenet.write(str(tmp_path / 'data'), num_train=64, num_validation=16)
  words = ['--config=configs/smoothadv_imagenet.py', f'--config.data.data_dir={tmp_path / "data"}',
           '--config.data.image_size=64', '--config.train.batch_size=16',
           '--config.train.eval_batch_size=16', '--config.train.num_steps=4',
           '--config.train.checkpoint_every=2', '--config.attack.num_steps=2',
           '--config.evaluation.num_noise=2', '--config.evaluation.stride=8',
           '--config.evaluation.batch_size=2', '--config.evaluation.n=100',
           '--config.evaluation.epsilons=(0.5,)', '--config.certify.batch_size=50',
           '--config.certify.n=100', '--config.certify_images.stride=4',
           '--config.certify_images.images_per_call=2']
  folder = tmp_path / 'run'
  saved = lambda f: (f / 'checkpoints' / 'step_2').exists()
  launch_and_kill(environment, folder, saved, *words)
  result = launch(environment, folder, *words)
  assert result.returncode == 0, result.stderr
  lines = metrics(folder)
  assert lines[-1]['step'] == 4 and all(np.isfinite(line['loss']) for line in lines)
  certified = log.read(folder / 'certify.jsonl')
  assert certified.idx.tolist() == [0, 4, 8, 12] and certified.settings['split'] == 'validation'
  record = json.loads((folder / 'run.json').read_text())
  assert record['model'] == {'name': 'resnet50', 'num_params': 25_557_032}
  assert record['dataset']['num_classes'] == 1000
