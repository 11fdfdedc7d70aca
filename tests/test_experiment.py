"""Configs: every one loads, validates and builds; every mistake is one line."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from launch import experiments, flags
from robust_jax import attacks, data, errors, stages, workdir
from robust_jax.config import experiment, sections
from robust_jax.devices.choose import choose_devices
from robust_jax.errors import UserError
from robust_jax.training import methods
from robust_jax.types import Attack, Count, NonNegative, Positive

ROOT = Path(__file__).parents[1]
GOLDEN = json.loads((ROOT / 'tests/golden/configs.json').read_text())
CONFIGS = [name for name in GOLDEN if name != 'defaults']
SHAPES = {'digits': (8, 8, 1), 'mnist': (28, 28, 1), 'cifar10': (32, 32, 3),
          'cifar100': (32, 32, 3), 'imagenet2012': (224, 224, 3)}


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
  monkeypatch.chdir(ROOT)


def parse(*words):
  """The resolved config of a command line."""
  return sections.resolve(flags.parse(['launch', *words]).config)


def build(*words):
  """The Run of a command line, on two devices."""
  return experiment.build(parse(*words), jax.devices()[:2])


@pytest.fixture
def no_data(monkeypatch):
  """Datasets of the right shapes without a file."""

  def load(name, split, **kwargs):
    del kwargs
    images = np.zeros((400, *SHAPES[name]), np.uint8)
    source = data.DATASETS[name]
    return data.Dataset(name=name, split=split, images=images, labels=np.zeros(400, np.int32),
                        class_names=tuple('0123456789'), mean=source.mean, std=source.std)

  monkeypatch.setattr(data, 'load', load)
  monkeypatch.setattr(data.extra, 'load', lambda name, *, like, **kwargs: like)


@pytest.mark.parametrize('name', CONFIGS)
def test_every_experiment_is_what_it_was(name):
  """In golden/configs.json a component of another name than the default's is there as a whole."""
  config, defaults = parse(f'--config={name}'), GOLDEN['defaults']
  for section, values in {**defaults, **GOLDEN[name]}.items():
    default = defaults.get(section)  # None of one that is younger than the file.
    if isinstance(default, dict) and values.get('name', default.get('name')) == default.get('name'):
      values = {**default, **values}
    # A field that is younger than the file is at its default.
    found = config[section]
    found = {field: found[field] for field in values} if isinstance(values, dict) else found
    assert json.dumps(found) == json.dumps(values), section


def test_the_list_has_every_experiment(capsys):
  with pytest.raises(SystemExit):
    flags.parse(['launch', '--list'])
  lines = capsys.readouterr().out.splitlines()
  assert max(map(len, lines)) <= 100
  listed = [line.split()[0] for line in lines if line.startswith('configs/')]
  assert sorted(listed) == sorted([*CONFIGS, 'configs/methods.py'])
  assert 'configs/mnist.py:gaussian   ' in '\n'.join(lines)
  assert all(len(line.split(maxsplit=1)) == 2 for line in lines if line)


def test_the_help_is_one_page(capsys):
  with pytest.raises(SystemExit):
    flags.parse(['launch', '--help'])
  lines = capsys.readouterr().out.splitlines()
  assert 24 <= len(lines) <= 42 and max(map(len, lines)) <= 100
  named = [name for line in lines if line.startswith('  --')
           for name in re.findall(r' --([a-z_]+)', line[:90])]
  assert {*flags.FLAGS, 'config', 'help'} <= {*named} <= {*flags.FLAGS, 'config', 'help'}
  for stage in stages.STAGES:
    assert re.search(fr'\b{stage}\b', '\n'.join(lines))
  assert ','.join(stages.DEFAULT) == 'train,attack,certify,sandwich,report'
  assert lines.index('Examples:') > len(lines) - 8


def test_the_help_imports_nothing_slow():
  program = 'import runpy, sys\nrunpy.run_module("launch", run_name="__main__")\n'
  program += 'assert not {"jax", "numpy", "absl"} & {*sys.modules}'
  done = subprocess.run([sys.executable, '-c', program, '--help'], cwd=ROOT, capture_output=True,
                        text=True, check=True)
  assert done.stdout.splitlines()[-1].startswith('  python -m launch ')


@pytest.mark.parametrize('wanted, has, lacks', [
    ('fields', ['epsilon=0.5  (a number in', 'train.batch_size=64', 'method.attack.norm=l2'], []),
    ('method.attack', ['method.attack.num_steps=2  (an integer in'], ['epsilon', 'attack']),
    ('epsilon', ['epsilon=0.5'], ['train.batch_size']),
])
def test_the_help_has_fields_with_values_ranges_and_meaning(wanted, has, lacks, capsys):
  with pytest.raises(SystemExit):
    flags.parse(['launch', f'--help={wanted}', '--config=digits'])
  lines = capsys.readouterr().out.splitlines()
  for text in has:
    assert any(line.startswith(f'  --config.{text}') for line in lines), text
  for text in lacks:
    assert not any(line.startswith(f'  --config.{text}') for line in lines), text
  assert max(map(len, lines)) <= 100
  if wanted == 'epsilon':
    assert 'training defends against' in lines[1]


@pytest.mark.parametrize('word, hint', [
    ('--epsilon=0.3', '--config.epsilon or --config.method.epsilon'),
    ('--num_steps=3', '--config.train.num_steps or .*'), ('--confg.seed=1', '--config.seed'),
    ('--stage=train', '--stages'), ('--config.trian.num_steps=1', 'train'),
    ('--help=trian', 'train'), ('--lr=0.1', '--config.schedule.learning_rate'),
    ('--N=100', '--config.certify.n'), ('--config.eps=1', 'config.epsilon'),
    ('--config.norm=linf', 'config.attack.norm'),
    ('--config.attack.steps=3', 'config.attack.num_steps'),
    ('--config.method.attack.steps=3', 'config.method.attack.num_steps'),
    ('--config.method.attack.eps=3', 'config.epsilon'),
    ('--config.evaluation.max=3', 'config.evaluation.num_images'),
])
def test_a_flag_that_is_spelt_otherwise_has_a_hint(word, hint):
  with pytest.raises(UserError, match=f"{word.lstrip('-').partition('=')[0]}.*did you mean {hint}"):
    flags.parse(['launch', word])


@pytest.mark.parametrize('word, message', [
    ('--config.train.batch_size=100.5', "batch_size must be an integer, got '100.5'"),
    ('--config.epsilon=small', "epsilon must be a number, got 'small'"),
    ('--config.model.name=mine/net.py:Net', "did you mean 'mine.net:Net'"),
    ('--config.model.name=mine.Net', "one of your own is 'mine:Net'")])
def test_mistakes_of_a_first_hour(word, message):
  with pytest.raises(UserError, match=message):
    parse('--config=digits', word)


def test_a_workdir_that_is_not_there_is_remarked(capsys):
  flags.parse(['launch', '--workdir=nosuch'])
  line, = capsys.readouterr().err.splitlines()
  assert 'nosuch' in line and 'configs/smoothadv_digits.py' in line


def test_a_field_named_as_a_word_of_python_is_none():
  assert 'did you mean trades' in errors.choices('name', ['trades', 'pgd'], 'TRADES')
  with pytest.raises(UserError, match=r'config.method.lambda is not a field; --help'):
    flags.parse(['launch', '--config.method.lambda=6'])


def test_experiments_are_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  default, pgd = flags.parse(['launch']), flags.parse(['launch', '--config=mnist:pgd'])
  assert default.config.method.name == 'smoothadv' and pgd.config.epsilon == 0.3
  assert 'mnist.py:pgd' in experiments.listing()


@pytest.mark.parametrize('given, meant', [
    ('smoothadv_digits', 'configs/smoothadv_digits.py'),
    ('digits:trades', 'configs/digits.py:trades'),
    ('configs/mnist:pgd', 'configs/mnist.py:pgd'), ('mnist.py:pgd', 'configs/mnist.py:pgd'),
])
def test_an_experiment_goes_by_its_bare_name_too(given, meant):
  assert parse(f'--config={given}') == parse(f'--config={meant}')


def test_a_name_that_there_is_not_brings_the_nearest_few():
  message = "config.model.name .* got 'resnet21'; did you mean resnet20 or"
  with pytest.raises(UserError, match=message) as raised:
    parse('--config.model.name=resnet21')
  assert 'densenet' not in str(raised.value)


@pytest.mark.parametrize('given, meant', [
    ('configs/gaussian_mnist.py', 'configs/mnist.py:gaussian'),
    ('configs/robust_digits.py', 'configs/digits.py:robust'),
    ('configs/shaham_cifar10.py', 'configs/shaham.py:cifar10'),
    ('configs/smoothadv_mnst.py', 'configs/mnist.py:smoothadv'),
    ('configs/mnits.py', 'configs/mnist.py'),
    ('gaussian', '.*configs/mnist.py:gaussian'),
    ('mnist:gausian', 'gaussian'),
    ('configs/mnist.py:gausian', 'gaussian'),
    ('configs/methods.py:tradse', 'trades'),
])
def test_the_nearest_experiment_is_named(given, meant):
  with pytest.raises(UserError, match=f'did you mean {meant}?') as raised:
    parse(f'--config={given}')
  assert '\n' not in str(raised.value)


def test_without_a_name_a_config_file_gives_its_default():
  assert parse('--config=configs/mnist.py') == parse('--config=configs/mnist.py:smoothadv')
  for dataset in ('digits', 'imagenet'):
    assert parse(f'--config=configs/smoothadv_{dataset}.py') == parse(
        f'--config=configs/{dataset}.py')


@pytest.mark.parametrize('name', [name for name in CONFIGS if name != 'configs/external.py'])
def test_config_loads_validates_and_builds(name, no_data):
  run = build(f'--config={name}')
  assert (run.certify is None) == (run.sigma == 0)
  assert run.learning_rate()(0) > 0
  image = jax.ShapeDtypeStruct((1, *run.test_data.image_shape), np.float32)
  variables = jax.eval_shape(
      functools.partial(run.model.init, train=False), jax.random.key(0), image)
  images = jax.ShapeDtypeStruct((4, *run.test_data.image_shape), np.float32)
  logits = jax.eval_shape(lambda v, x: run.network.eval_logits(v)(x), variables, images)
  assert logits.shape == (4, 10)


def test_shared_fields_reach_every_function_that_has_them(no_data):
  run = build('--config.epsilon=0.75', '--config.sigma=0.125')
  assert run.method.keywords['epsilon'] == 0.75 and run.method.keywords['sigma'] == 0.125
  assert run.method.keywords['attack'].keywords['sigma'] == 0.125
  assert run.certify.sigma == 0.125
  run = build('--config.certify.sigma=0.5', '--config.method.sigma=0.1')
  assert run.sigma == run.attack.keywords['sigma'] == 0.5
  assert run.method.keywords['sigma'] == run.method.keywords['attack'].keywords['sigma'] == 0.1


def test_overrides_reach_nested_attacks(no_data):
  run = build('--config.method.attack.num_steps=7', '--config.evaluation.epsilons=(0.1, 0.2)')
  assert run.method.keywords['attack'].keywords['num_steps'] == 7
  assert run.evaluation.epsilons == (0.1, 0.2)


@pytest.mark.parametrize('words, message', [
    (['--config.nosuch=1'], 'config.nosuch is not a field'),
    (['--config.images.num_images=1'], '--help=fields'),
    (['--config.train.lr=1'], 'config.schedule.learning_rate'),
    (['--config.attack.epsilon=1'], 'config.evaluation.epsilons'),
    (['--config.method.attack.epsilon=1'], 'did you mean config.epsilon'),
    (['--config.method.num_noize=3'], 'config.method.num_noize is not a field; did you mean '
                                      'num_noise?'),
    (['--config.train.batch_size=0'], r'config.train.batch_size must be .*\[1, inf\), got 0'),
    (['--config.train.batch_size=many'], "config.train.batch_size must be an integer, got 'many'"),
    (['--config.method=trades'], "--config.method has fields, got 'trades'"),
    (['--config.method.name=madry'], "config.method.name must be one of .* got 'madry'"),
    (['--config.method.attack.norm=l7'],
     "config.method.attack.norm must be one of linf, l2, l1, got 'l7'"),
    (['--config.model.name=vgg99'], "config.model.name must be one of .* got 'vgg99'"),
    (['--config.certify.alpha=1.5'], r'config.certify.alpha must be .*\(0, 1\), got 1.5'),
    (['--config.certify.alpha=nan'], 'config.certify.alpha .* got nan'),
    (['--config.sigma=-1.0'], r'config.sigma must be .*\[0, inf\), got -1.0'),
    (['--config.seed=-1'], 'config.seed must be an integer .* got -1'),
    (['--config.seed=4294967296'], 'config.seed .* got 4294967296'),
    (['--config.epsilon=inf'], 'config.epsilon .* got inf'),
    (['--config.evaluation.epsilons=(0.5, -1.0)'],
     r'config.evaluation.epsilons .* got \[0.5, -1.0\]'),
    (['--config=configs/nope.py'], '--config .*configs/nope.py'),
    (['--config=Makefile'], '--config: Makefile has no get_config'),
    (['--stages=train,fly'],
     "--stages .*'fly'"),
    (['--redo=verify'], "--redo .*'verify'"),
    (['--redo=all'], "--redo .*'all'"),
    (['--devices=-1'], 'devices=-1'),
    (['--nope'], '--nope is not a flag'),
    (['train'], "command line: .*'train'"),
])
def test_mistakes_are_one_line(words, message):
  with pytest.raises(UserError, match=message) as raised:
    parse(*words)
  assert '\n' not in str(raised.value)


def test_leftover_fields_of_another_method_are_named():
  config = flags.parse(['launch']).config
  config.unlock()
  config.method = {'name': 'gaussian', 'sigma': 0.5, 'num_noise': 3}
  with pytest.raises(UserError, match='config.method.num_noise is not a field.* sigma'):
    sections.resolve(config)
  config.method = {'name': 'gaussian'}
  with pytest.raises(UserError, match='config.method.sigma is missing'):
    sections.resolve(config)
  del config.certify
  with pytest.raises(UserError, match='config.certify is missing'):
    sections.resolve(config)


@pytest.mark.parametrize('words, line', [
    ([], 'cnn on digits, smoothadv training by l2 pgd (epsilon 0.5, sigma 0.25), smoothed by sigma '
         '0.25, seed 0'),
    (['--config.method.attack.name=ddn', '--config.extra.name=digits', '--config.extra.share=0.25'],
     'cnn on digits, smoothadv training by l2 ddn (epsilon 0.5, sigma 0.25), 25% of each batch '
     'from digits train, smoothed by sigma 0.25, seed 0'),
    (['--config.method.attack.name=none', '--config.sigma=0.0'],
     'cnn on digits, smoothadv training (sigma 0), seed 0'),
    (['--config.method.name=standard', '--config.sigma=0.0'],
     'cnn on digits, standard training, seed 0'),
    (['--config.method.name=gaussian', '--config.method.sigma=0.5'],
     'cnn on digits, gaussian training (sigma 0.5), smoothed by sigma 0.25, seed 0'),
])
def test_the_headline_has_what_is_used(words, line):
  run = experiment.build(parse(*words))
  assert run.summary().startswith(f'{line}, ')


def test_numbers_can_be_unset():
  """What an experiment gives, as a step's length, in place of what follows from other fields."""
  words = ('--config=mnist:pgd', '--config.attack.step_size=None',
           '--config.optimizer.clip_norm=None')
  config = parse(*words, '--config.attack.step_ratio=2')
  assert config['attack']['step_size'] is None and config['attack']['step_ratio'] == 2
  assert config['optimizer']['clip_norm'] is None
  assert parse(words[0])['attack']['step_size'] == 0.01
  with pytest.raises(UserError, match=r'config.train.num_steps must be an integer .*, got None'):
    parse('--config.train.num_steps=None')
  sweep = flags.parse(['launch', *words, '--sweep', '--config.attack.num_steps=5,7']).sweep
  assert [config['attack']['step_size'] for config in sweep.configs] == [None, None]


def test_fractions_are_numbers():
  config = parse('--config=configs/digits.py:pgd', '--config.epsilon=8/255', '--config.sigma',
                 '0.5', '--config.evaluation.epsilons=(1/4, .5/2)',
                 '--config.data.data_dir=2021/12')
  assert (config['epsilon'], config['sigma']) == (8 / 255, 0.5)
  assert config['evaluation']['epsilons'] == [0.25, 0.25]
  assert config['data']['data_dir'] == '2021/12'
  config = flags.parse(['launch', '--config=configs/digits.py:pgd', '--config.sigma=-1/4',
                        '--config.method.attack.step_size=2./255']).config
  assert (config.sigma, config.method.attack.step_size) == (-0.25, 2 / 255)
  for value, named in (('8/2/1', '8/2/1'), ('1/1e3', '1/1e3'), ('8/0', 'config.epsilon')):
    with pytest.raises(UserError, match=named):
      parse(f'--config.epsilon={value}')


@pytest.mark.parametrize('field', ['train.batch_size', 'train.eval_batch_size',
                                   'evaluation.batch_size'])
def test_batches_must_divide_by_the_devices(field, no_data):
  config = parse(f'--config.{field}=100')
  with pytest.raises(UserError, match=f'config.{field} .*multiple of 8.*100'):
    experiment.build(config, jax.devices())


def test_too_many_devices_are_refused():
  with pytest.raises(UserError, match='--devices .*8.*9'):
    choose_devices(9, [18])


def test_attacks_get_what_they_take(no_data):
  run = build('--config.attack.name=ddn', '--config.attack.gamma=0.0')
  assert run.attack.func is attacks.ddn and run.attack.keywords == {
      'norm': 'l2', 'num_steps': 20, 'init_norm': 1., 'gamma': 0., 'rounding': 'inside'}
  inner = build('--config=configs/digits.py:smoothadv_gradient_free',
                '--config.sigma=0.375').method.keywords['attack'].keywords
  assert inner['smoothed_objective'] == 'gradient_free' and inner['sigma'] == 0.375
  build('--config=configs/digits.py:noise_then_attack', '--config.method.num_noise=2',
        '--config.method.attack.smoothed_objective=gradient_free')


def test_self_training_mixes_what_it_names(monkeypatch, no_data):
  seen = []

  def load(name, *, like, **kwargs):
    seen.append({'name': name, **kwargs})
    return like

  monkeypatch.setattr(data.extra, 'load', load)
  run = build('--config=configs/digits.py:self_training', '--config.data.data_dir=/there')
  assert run.train_data.num_examples == 800 and run.steps_per_epoch == 13  # 400 by halves of 64
  assert run.train_data.mixture == (400, 0.5, 0.5)
  assert seen[0]['name'] == 'digits' and seen[0]['split'] == 'train[300:]'
  assert seen[0]['labels'].endswith('.tsv') and seen[0]['data_dir'] == '/there'
  changed = dict(run.config, extra=dict(run.config['extra'], weight=1.))
  field, = sections.changed_fields(run.config, changed, 'train')
  assert field.startswith('config.extra.weight ') and '0.5' in field and '1.0' in field
  assert not sections.changed_fields(run.config, changed, 'certify')


@pytest.mark.parametrize('words', [['pgd'], ['robust', '--config.attack.norm=l1']])
def test_the_order_of_projections_is_written_out(words):
  name, *words = words
  config = parse(f'--config=configs/digits.py:{name}', *words)
  assert config['attack']['order'] == ('joint' if words else 'ball_then_box')
  assert not sections.changed_fields(config, config, 'attack')
  # Workdirs of the time when there was no 'auto' go on.
  before = dict(config, attack=dict(config['attack'], order='ball_then_box'))
  changed = sections.changed_fields(before, config, 'attack')
  assert changed == (["config.attack.order was 'ball_then_box', is 'joint'"] if words else [])


def test_a_workdir_after_a_space_is_found(tmp_path):
  config = parse('--config.certify.n=77')
  workdir.write_json(tmp_path / 'config.json', config)
  assert parse('--workdir', str(tmp_path))['certify']['n'] == 77


@pytest.mark.parametrize('name', CONFIGS)
def test_saved_config_is_the_same_config(name, tmp_path):
  config = parse(f'--config={name}', '--config.data.data_dir=/data')
  workdir.write_json(tmp_path / 'config.json', config)
  assert parse(f'--workdir={tmp_path}') == config
  changed = parse(f'--workdir={tmp_path}', '--config.certify.n=77',
                  '--config.certify.sigma=2.0')
  assert changed['certify']['n'] == 77 and changed['certify']['sigma'] == 2.


def test_a_workdir_of_a_method_that_is_gone_is_one_line(tmp_path):
  config = parse()
  config['method']['name'] = 'mine'
  workdir.write_json(tmp_path / 'config.json', config)
  with pytest.raises(UserError) as raised:
    parse(f'--workdir={tmp_path}', '--stages=report')
  assert str(raised.value).startswith(f'{tmp_path}/config.json: config.method.name ')
  assert "'mine'" in str(raised.value)
  assert '\n' not in str(raised.value) and 'Traceback' not in str(raised.value)


def test_a_new_function_is_configured_by_its_signature(monkeypatch, no_data):
  """A method is one function and one table entry: no other file knows of it."""

  def mine(key, network, params, batch_stats, batch, progress, *,
           attack: Attack, sigma: NonNegative, weight: Positive = 2.):
    del attack, sigma, weight
    return methods.standard(key, network, params, batch_stats, batch, progress)

  def shift(key, logits_fn, images, labels, *, epsilon, noise=None, amount: Count = 3):
    return attacks.no_attack(key, logits_fn, images + amount, labels, epsilon=epsilon, noise=noise)

  monkeypatch.setitem(sections.TABLES['method'], 'mine', mine)
  monkeypatch.setitem(sections.TABLES['attack'], 'shift', shift)
  config = flags.parse(['launch']).config
  config.unlock()
  config.method = sections.component('method', 'mine', attack=sections.component(
      'attack', 'shift', amount=5))
  run = experiment.build(sections.resolve(config), jax.devices()[:2])
  assert run.method.keywords['weight'] == 2. and run.method.keywords['sigma'] == 0.25
  assert run.method.keywords['attack'].keywords == {'amount': 5}
  config.method.weight = -1.
  with pytest.raises(UserError, match='config.method.weight .* got -1.0'):
    sections.resolve(config)


def test_the_launchers_main_is_short():
  assert len((ROOT / 'launch/run.py').read_text().splitlines()) < 90


def test_another_name_on_the_command_line_brings_its_own_fields():
  config = parse('--config.model.name=wide_resnet', '--config.model.depth=10',
                 '--config.model.width=1', '--config.attack.name=fgsm',
                 '--config.method.attack.num_steps=7', '--config.schedule.name=constant')
  assert config['model']['name'] == 'wide_resnet' and config['model']['depth'] == 10
  assert 'widths' not in config['model']
  # A field that both have keeps its value.
  assert config['attack']['name'] == 'fgsm' and config['attack']['norm'] == 'l2'
  assert 'num_steps' not in config['attack']
  assert config['method']['attack']['num_steps'] == 7
  default = parse()
  assert config['schedule']['learning_rate'] == default['schedule']['learning_rate']
  nested = parse('--config.method.attack.name=fgsm')
  assert nested['method']['attack']['name'] == 'fgsm'
  assert nested['method']['num_noise'] == default['method']['num_noise']
  same = parse(f'--config.model.name={default["model"]["name"]}')
  assert same == default


@pytest.mark.parametrize('config, folder', [
    ('configs/mnist.py:gaussian', 'runs/gaussian_mnist'),
    ('configs/mnist.py', 'runs/smoothadv_mnist'),
    ('configs/smoothadv_imagenet.py', 'runs/smoothadv_imagenet'),
    ('configs/external.py', 'runs/external'), ('configs/workdir.py:{saved}', 'runs/workdir'),
])
def test_the_workdir_is_named_by_the_experiment(config, folder, tmp_path):
  workdir.write_json(tmp_path / 'config.json', parse())
  parsed = flags.parse(['launch', f'--config={config.format(saved=tmp_path)}'])
  assert parsed.workdir == Path(folder)


def test_the_config_may_be_a_word_of_its_own():
  parsed = flags.parse(
      ['launch', '--config', 'configs/mnist.py:pgd', '--workdir', 'runs/x'])
  assert parsed.config.data.name == 'mnist' and parsed.workdir == Path('runs/x')
