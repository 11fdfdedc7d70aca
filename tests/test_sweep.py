"""Sweeps: what is run, skipped and refused, with a stand-in for the launcher; one real one."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from launch import flags, sweep
from robust_jax import report, workdir
from robust_jax.config.sections import component
from robust_jax.errors import UserError
from robust_jax.workdir import interrupts

ROOT = Path(__file__).parents[1]
ALL = {'train', 'attack', 'certify', 'sandwich', 'report'}
# Leaves what a run leaves, writes down how it was called, and fails or waits if it is told to.
STAND_IN = '''
import json, pathlib, signal, sys, time
words = dict(word.lstrip('-').partition('=')[::2] for word in sys.argv[1:])
folder = pathlib.Path(words['workdir'])
config = json.loads((folder / 'config.json').read_text())
with open(folder.parent.parent / 'calls', 'a') as file:
  call = [folder.name, words['stages'], config['seed'], words.get('devices')]
  file.write(json.dumps(call) + chr(10))

def stop(number, frame):
  with open(folder.parent.parent / 'signals', 'a') as file:
    file.write(f'{number} ')
  time.sleep(0.5)  # Another signal would still be counted.
  sys.exit(75)

if words.get('wait') == folder.name:
  signal.signal(signal.SIGTERM, stop)
  signal.signal(signal.SIGINT, stop)
  (folder.parent.parent / 'ready').touch()
  time.sleep(60)
if folder.name in words.get('status', '').split(',')[1:]:
  sys.exit(int(words['status'].split(',')[0]))
names = [name for name in words['stages'].split(',') if name != 'report']
path = folder / 'stages.json'
stages = json.loads(path.read_text()) if path.exists() else {}
stages |= {name: {'status': 'done', 'seconds': 1.0, 'config': config} for name in names
           if name not in stages}
path.write_text(json.dumps(stages))
(folder / 'metrics.jsonl').write_text(json.dumps(
    {'split': 'test', 'step': 1, 'loss': 1.0, 'accuracy': 0.5 + 0.01 * config['seed']}))
if 'report' in words['stages']:
  (folder / 'report.html').touch()
'''


@pytest.fixture
def stand_in(tmp_path):
  path = tmp_path / 'stand_in.py'
  path.write_text(STAND_IN)
  return sys.executable, str(path)


def parse(*words):
  """The Sweep that the launcher makes of a command line."""
  return flags.parse(['launch', '--sweep', *words]).sweep


def calls(tmp_path):
  path = tmp_path / 'calls'
  lines = path.read_text().splitlines() if path.exists() else []
  path.unlink(missing_ok=True)
  return [json.loads(line) for line in lines]


def write_config(path, points, extra=''):
  path.write_text('import numpy as np\nfrom configs import digits\n'
                  'from configs.base import component\n'
                  'get_config = digits.smoothadv\n'
                  f'def sweep():\n  return {points}\n{extra}')
  return f'--config={path}'


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
  monkeypatch.chdir(ROOT)


# Expansion.


def test_every_point_is_the_config_with_its_fields(tmp_path):
  points, configs, _ = parse('--config.train.num_epochs=3', '--profile=5')
  assert points == [{'seed': 0}, {'seed': 1}, {'seed': 2}]
  assert [config.pop('seed') for config in configs] == [0, 1, 2]
  assert configs[0] == configs[1] == configs[2]
  assert configs[0]['train']['num_epochs'] == 3 and configs[0]['train']['profile_steps'] == 5
  words = write_config(tmp_path / 'a.py', "({'method.num_noise': np.int64(n), 'epsilon':"
                       " np.float32(.5), 'method.attack.step_ratio': 1} for n in (1, 4))")
  points, configs, _ = parse(words)
  assert [config['method']['num_noise'] for config in configs] == [1, 4]
  assert configs[0]['epsilon'] == 0.5 and configs[0]['method']['attack']['step_ratio'] == 1.0
  json.dumps(configs)
  assert sweep.describe({'seed': 1, 'method': component('method', 'gaussian')}) == (
      'seed=1, method=gaussian')


def test_a_whole_section_can_be_swept(tmp_path):
  words = write_config(tmp_path / 'a.py', "[{'method': component('method', name)}"
                       " for name in ('standard', 'gaussian')]")
  _, configs, _ = parse(words, '--config.seed=7')
  assert [config['method']['name'] for config in configs] == ['standard', 'gaussian']
  assert [config['seed'] for config in configs] == [7, 7]
  with pytest.raises(UserError, match='--config.method.num_noise is given, but sweep'):
    parse(words, '--config.method.num_noise=2')


def test_a_point_may_be_of_another_experiment(tmp_path):
  words = write_config(tmp_path / 'a.py', "[{'config': 'configs/digits.py:trades'}, {'seed': 4}, "
                       "{'config': 'configs/digits.py:pgd', 'seed': 4}]")
  points, configs, _ = parse(words, '--config.train.num_epochs=3')
  assert [config['method']['name'] for config in configs] == ['trades', 'smoothadv', 'adversarial']
  assert [config['seed'] for config in configs] == [0, 4, 4]
  assert all(config['train']['num_epochs'] == 3 for config in configs)
  assert sweep.describe(points[2]) == 'configs/digits.py:pgd, seed=4'


@pytest.mark.parametrize('points, message', [
    ("[{'sead': 1}]", 'point 0 .*config.sead .*did you mean seed'),
    ("[{'seed': 1}, {'method.num_nose': 1}]",
     'point 1 .*config.method.num_nose .*did you mean num_noise'),
    ("[{'seed.x': 1}]", 'config.seed.x '),
    ("[{'seed': 'one'}]", "config.seed .*int.*'one'"),
    ("[{'seed': 0}, {'seed': -1}]", r'point 1 \(seed=-1\): config.seed .*-1'),
    ("[{'method.name': 'magic'}]", r"\(method.name=magic\): config.method.name .*'magic'"),
    ("[{'seed': 1}, {}, {'seed': 0}]", r'points 1 and 2 .*\(seed=0\)'),
    ("[{'config': 'configs/digits.py:pdg'}]", "point 0 .*'pdg'.*did you mean pgd"),
    ("[{'config': 'configs/digit.py:pgd'}]", 'point 0 .*configs/digit.py'),
    ('[]', r'has no sweep\(\)'),
    ("{'seed': [1, 2]}", "got 'seed'"),
    ('[{1: 2}]', 'got {1: 2}'),
    ('1 / 0', 'division by zero'),
    ('None', r'has no sweep\(\)'),
])
def test_mistakes_in_a_sweep_are_one_line(points, message, tmp_path):
  words = write_config(tmp_path / 'a.py', points)
  with pytest.raises(UserError, match=message) as caught:
    parse(words)
  assert '\n' not in str(caught.value)


def test_several_values_of_numbers_are_swept_in_all_combinations():
  swept = parse('--config=digits:gaussian', '--config.seed=3,4', '--config.epsilon=8/255,0.5')
  assert swept.points == [{'seed': seed, 'epsilon': epsilon}
                          for seed in (3, 4) for epsilon in (8 / 255, 0.5)]
  assert [config['seed'] for config in swept.configs] == [3, 3, 4, 4]
  assert swept.study is None
  # In place of the three seeds of the file, at what the command line says besides.
  swept = parse('--config=digits:smoothadv', '--config.evaluation.num_noise=1,8', '--config.seed=7')
  assert [config['seed'] for config in swept.configs] == [7, 7]
  with pytest.raises(UserError, match=r"config\.seed.*int.*'1,two'"):
    parse('--config.seed=1,two')
  with pytest.raises(UserError, match=r'config\.seed .*0,1,2; with --sweep'):
    flags.parse(['launch', '--config.seed=0,1,2'])
  with pytest.raises(UserError, match='points 0 and 1 are the same'):
    parse('--config.seed=1,1')


def test_a_field_is_set_in_one_place_and_a_sweep_has_to_be_there():
  with pytest.raises(UserError, match='--config.seed '):
    parse('--config.seed=3')
  with pytest.raises(UserError, match=r'configs/mnist.py:standard has no sweep\(\)'):
    parse('--config=configs/mnist.py:standard')
  parsed = flags.parse(['launch', '--sweep'])
  assert parsed.workdir == Path('runs/smoothadv_digits_sweep') and len(parsed.sweep.points) == 3
  parsed = flags.parse(['launch'])
  assert parsed.workdir == Path('runs/smoothadv_digits') and parsed.sweep is None


# Running, with the stand-in.


def test_runs_in_order_and_skips_what_is_finished(tmp_path, stand_in, capsys):
  swept, folder = parse(), tmp_path / 'sweep'
  run = lambda wanted: sweep.run(swept, folder, wanted, num_devices=2, launcher=stand_in)
  assert run({'train'}) == 0
  assert calls(tmp_path) == [[f'00{seed}', 'train', seed, '2'] for seed in range(3)]
  assert '[2/3] ' in capsys.readouterr().out
  assert json.loads((folder / report.SWEEP).read_text())['runs'][1] == {
      'workdir': '001', 'point': {'seed': 1}}
  assert run({'train'}) == 0
  printed = capsys.readouterr().out
  assert calls(tmp_path) == [] and printed.count('done already') == 3
  # Seeds 0, 1, 2 have 50, 51 and 52%: t(0.975, 2) / sqrt(3) = 2.484.
  assert '51.0 ± 2.5' in printed and str(folder / 'sweep.html') in printed
  record = json.loads((folder / '001' / 'stages.json').read_text())
  record['train']['status'] = 'running'
  (folder / '001' / 'stages.json').write_text(json.dumps(record))
  assert run({'train'}) == 0
  assert [call[0] for call in calls(tmp_path)] == ['001']
  record['train']['status'] = 'done'
  (folder / '001' / 'stages.json').write_text(json.dumps(record))
  assert run(ALL) == 0
  assert calls(tmp_path)[2] == ['002', 'train,attack,certify,sandwich,report', 2, '2']
  (folder / '000' / 'report.html').unlink()
  assert run(ALL) == 0
  assert [call[0] for call in calls(tmp_path)] == ['000']
  assert {path.name for path in folder.iterdir() if path.is_file()} >= {
      workdir.LOCK, 'sweep.json', 'sweep.html', 'sweep.csv', 'sweep.md', 'sweep.tex'}


def test_a_failed_run_is_named_and_the_sweep_goes_on(tmp_path, stand_in, capfd):
  swept = parse()
  run = lambda *words: sweep.run(swept, tmp_path / 's', {'train'}, launcher=(*stand_in, *words))
  assert run('--status=3,000,001,002') == 1
  printed = capfd.readouterr()
  assert 'error: 3 of 3 runs failed: ' in printed.err and 'report: ' not in printed.out
  assert len(calls(tmp_path)) == 3
  assert run('--status=3,001') == 1
  printed = capfd.readouterr()
  assert f'error: 1 of 3 runs failed: {tmp_path}/s/001 (exit status 3); the' in printed.err
  assert '51.0 ± 12.7' in printed.out and f'note: {tmp_path}/s/001: nothing is' in printed.out
  assert len(calls(tmp_path)) == 3
  assert run() == 0
  assert [call[0] for call in calls(tmp_path)] == ['001']
  # Nor does a run that the system ends.
  crash = 'import os, signal; os.kill(os.getpid(), signal.SIGSEGV)'
  assert sweep.run(swept, tmp_path / 't', {'train'}, launcher=(sys.executable, '-c', crash)) == 1
  assert capfd.readouterr().err.count('(exit status -11) failed') == 3


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_run_once_and_ends_the_sweep(number, tmp_path, stand_in, request):
  swept = parse()
  # Tests that run in the background may have been started with it ignored.
  request.addfinalizer(functools.partial(signal.signal, number, signal.getsignal(number)))
  signal.signal(number, signal.SIG_DFL)

  def send():
    deadline = time.monotonic() + 30
    while not (tmp_path / 'ready').exists() and time.monotonic() < deadline:
      time.sleep(0.02)
    os.kill(os.getpid(), number)

  before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
  thread = threading.Thread(target=send)
  thread.start()
  with pytest.raises(interrupts.Interrupted, match=number.name) as caught:
    sweep.run(swept, tmp_path / 's', {'train'}, launcher=(*stand_in, '--wait=001'))
  thread.join()
  assert caught.value.exit_status == 75
  assert [call[0] for call in calls(tmp_path)] == ['000', '001']
  if number != signal.SIGHUP:  # Which the launcher does not wait for.
    assert (tmp_path / 'signals').read_text().split() == [str(int(number))]
  assert before == [signal.getsignal(each)
                    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]


def test_an_interrupted_run_ends_the_sweep(tmp_path, stand_in):
  with pytest.raises(interrupts.Interrupted, match='s/001'):
    sweep.run(parse(), tmp_path / 's', {'train'}, launcher=(*stand_in, '--status=75,001'))
  assert [call[0] for call in calls(tmp_path)] == ['000', '001']


def test_folders_of_something_else_are_refused_before_anything_runs(tmp_path, stand_in):
  swept, folder = parse(), tmp_path / 's'
  run = lambda configs: sweep.run(swept._replace(configs=configs), folder, {'train'},
                                  launcher=stand_in)
  configs = swept.configs
  folder.mkdir()
  (folder / 'thesis.tex').touch()
  with pytest.raises(UserError, match='thesis.tex.*sweep.json'):
    run(configs)
  (folder / 'thesis.tex').unlink()
  assert run(configs) == 0
  calls(tmp_path)
  changed = json.loads(json.dumps(configs))
  changed[2]['epsilon'] = 0.75
  config = (folder / '002' / 'config.json').read_text()
  with pytest.raises(UserError, match='s/002: .*config.epsilon .*0.5.*0.75'):
    run(changed)
  assert calls(tmp_path) == [] and (folder / '002' / 'config.json').read_text() == config
  with workdir.locked(folder), pytest.raises(UserError, match='which is in use'):
    run(configs)
  # A run's own folder is none of a sweep.
  with pytest.raises(UserError, match='config.json.*sweep.json'):
    sweep.run(swept, folder / '000', {'train'}, launcher=stand_in)


def test_redo_puts_the_results_of_all_aside_at_once(tmp_path, stand_in):
  swept, folder = parse(), tmp_path / 's'
  run = lambda configs, redo, *words: sweep.run(
      swept._replace(configs=configs), folder, {'train', 'attack'}, redo,
      launcher=(*stand_in, *words))
  configs = swept.configs
  assert run(configs, ()) == 0
  changed = json.loads(json.dumps(configs))
  for config in changed:
    config['evaluation']['n'] = 500
  calls(tmp_path)
  with pytest.raises(interrupts.Interrupted):
    run(changed, ['attack'], '--status=75,001')
  assert run(changed, ()) == 0  # As the message says: the same command, without --redo.
  assert [call[0] for call in calls(tmp_path)] == ['000', '001', '001', '002']
  for path in sorted(folder.glob('00?')):
    assert workdir.stages(path)['attack']['config']['evaluation']['n'] == 500
    assert len(list(path.glob('previous/*/stages.json'))) == 1


# For real.

TINY = '''
from configs import base
from configs.base import component

def get_config():
  config = base.get_config()
  config.data.name = 'digits'
  config.model = component('model', 'mlp')
  config.train.update(batch_size=64, num_epochs=1.)
  return config

def sweep():
  return [{'seed': seed} for seed in (3, 4)]
'''


def test_a_real_sweep(tmp_path):
  (tmp_path / 'tiny.py').write_text(TINY)
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  result = subprocess.run(
      [sys.executable, '-m', 'launch', '--sweep', f'--config={tmp_path}/tiny.py',
       f'--workdir={tmp_path}/s', '--stages=train', '--devices=1'], cwd=ROOT,
      env={**environment, 'JAX_PLATFORMS': 'cpu', 'TFDS_DATA_DIR': str(tmp_path / 'tfds')},
      capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  accuracies = []
  for i, seed in enumerate((3, 4)):
    place = tmp_path / 's' / f'00{i}'
    assert json.loads((place / 'config.json').read_text())['seed'] == seed
    assert workdir.stages(place)['train']['status'] == 'done'
    lines = (place / 'metrics.jsonl').read_text().splitlines()
    accuracies.append(100 * json.loads(lines[-1])['accuracy'])
  assert accuracies[0] != accuracies[1]
  assert f'{np.mean(accuracies):.1f} ± ' in result.stdout
  assert (tmp_path / 's' / 'sweep.html').exists()
