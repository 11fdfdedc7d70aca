"""The benchmark: its arithmetic, its workers, and that the rivals do the same work."""

import argparse
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_imagenet
from flax import traverse_util

from benchmarks import __main__ as benchmark
from benchmarks import (
    flops,
    gpu,
    gpu_stages,
    hardware,
    jpeg,
    memory,
    ours,
    process,
    results,
    table,
    worker,
)
from benchmarks.work import CONTESTANTS, DEFAULT_CONTESTANTS, MODELS, TASKS, Contestant, Work, plan
from configs import digits
from robust_jax import models
from robust_jax.config import experiment, sections
from robust_jax.cpu import onednn
from robust_jax.data import decode

ROOT = Path(__file__).parents[1]
OURS = CONTESTANTS['cpu']['ours']


@pytest.fixture(autouse=True)
def own_devices(monkeypatch):
  """Workers choose their devices; they compile without optimisation, as the tests do."""
  monkeypatch.setenv('XLA_FLAGS', '--xla_backend_optimization_level=0')


def small_work(task, model='lenet'):
  return plan('cpu', [model], [task], [2], [2], quick=True)[0]._replace(num_devices=1)


def record():
  """A results file of two lines: rates of ours 40, 60, 50 and of PyTorch's layouts 20 and 25."""
  def measured(*seconds):
    return {'calls': 2, 'seconds': list(seconds), 'build_seconds': 0.5, 'first_call_seconds': 1.,
            'peak_bytes': {'process': 2**20, 'device': None}}

  work = Work('smoothadv', 'lenet', 10, num_steps=2, num_noise=4)
  per_second = flops.per_item(work)
  line = {'work': work._asdict(), 'failed': {}, 'differences': {}, 'others_busy': 0.02,
          'peaks': [{'float32': [100. * per_second, 1e9]}] * 3,
          'results': {'ours': measured(0.5, 1 / 3, 0.4), 'torch-nchw': measured(1., 1., 1.),
                      'torch': measured(0.8, 0.8, 0.8)}}
  other = {**line, 'others_busy': 0.5, 'work': Work('train', 'lenet', 10)._asdict(),
           'results': {'ours': measured(0.5, 0.5, 0.5)},
           'failed': {'torch': 'its process ended with status 1:\nMemoryError: too much'}}
  names = ('ours', 'torch', 'torch-nchw')
  return {'date': '2026-01-02T03:04:05+00:00', 'device': 'cpu', 'rounds': 3, 'lines': [line, other],
          'hardware': {'processor': 'Some(R) Processor @ 2GHz', 'cores': 2, 'commit': 'abc'},
          'versions': {'torch': {'torch': '2.0'}, 'ours': {'jax': '0.1'}},
          'missing': {'foolbox': 'foolbox'},
          'contestants': {name: CONTESTANTS['cpu'][name]._asdict() for name in names}}


# Arithmetic.


@pytest.mark.parametrize('name', MODELS)
def test_flops_are_those_of_our_layers(name, monkeypatch):
  model, shape = models.create(name, MODELS[name].num_classes), MODELS[name].image_shape
  images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  convolve, counted = onednn.conv, []

  def counting(images, kernel, **how):
    out = convolve(images, kernel, **how)
    counted.append(2 * math.prod(kernel.shape[:-1]) * math.prod(out.shape))
    return out

  monkeypatch.setattr(onednn, 'conv', counting)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
  dense = [2 * leaf.size for path, leaf in traverse_util.flatten_dict(variables['params']).items()
           if path[-1] == 'kernel' and leaf.ndim == 2]
  assert sum(counted + dense) == sum(flops.LAYERS[name])


def test_the_estimates_of_chip_hours_are_of_these_flops():
  page = (ROOT / 'docs' / 'pods.md').read_text(encoding='utf-8')
  rows = re.findall(r'^\| [^|]+ \| (\d+) \| (\d+) \| (\d+) \| ([\d,]+), ([\d,]+) \|$', page,
                    re.MULTILINE)
  assert len(rows) >= 3
  for row in rows:
    peak, *found = (int(number.replace(',', '')) for number in row)
    each = [flops.per_item(small_work(task)._replace(model='resnet50', num_steps=1, num_noise=1))
            for task in ('train', 'smoothadv')]
    per_second = [0.3 * peak * 1e12 / count for count in each]
    hours = [1_281_167 * 90 / rate / 3600 for rate in per_second]
    assert found == [*map(round, hours), *(round(rate, -2) for rate in per_second)]


def test_flops_of_the_tasks():
  layers = flops.LAYERS['lenet']
  forward = sum(layers)
  update = 3 * forward - layers[0]
  assert flops.per_item(small_work('certify')) == forward
  assert flops.per_item(small_work('pgd10')) == 20 * forward
  assert flops.per_item(small_work('train')) == update
  assert flops.per_item(small_work('smoothadv')) == 2 * (4 * forward + update)


def test_ratio_is_taken_round_by_round_against_the_faster_layout():
  line = record()['lines'][0]
  assert results.rates(line, 'ours') == pytest.approx([40, 60, 50])
  assert results.best_rival(record(), line, 'float32') == 'torch'
  assert results.ratio(line, 'ours', 'torch') == pytest.approx((2., 1.6, 2.4))
  assert results.share_of_peak(record(), line, 'ours') == pytest.approx((0.5, 0.4, 0.6))


def test_differences_are_from_the_first_that_was_asked():
  found = results.differences({
      'a': {'logits': np.array([1., -4.])}, 'b': {'logits': np.array([1., -4.5])},
      'c': {'counts': np.array([3])}})
  assert found['b']['logits'] == {'max': 0.5, 'scale': 4., 'share': 0.5}
  assert found['c']['counts'] == {'max': 0., 'scale': 3., 'share': 0.}


def test_a_contestant_that_computes_something_else_is_named():
  wrong = record()
  wrong['lines'][0]['differences'] = {
      'torch': {'logits': {'max': 0.1, 'scale': 1., 'share': 1.}}}
  assert results.disagreeing(wrong) == {('lenet', 'torch')}
  assert '**torch computes something else on lenet.**' in table.markdown(wrong)


def test_peak_is_that_of_a_machine():
  rate, copied = ours.peak(OURS, 'cpu', 0.)
  assert 1e8 < rate < 1e15
  assert 1e7 < copied < 1e14


# Tables.


def test_table_of_a_results_file(tmp_path):
  path = tmp_path / 'made.json'
  results.write(path, record())
  made = subprocess.run([sys.executable, '-m', 'benchmarks.table', path], capture_output=True,
                        text=True, check=True, cwd=ROOT).stdout
  assert ('| lenet | smoothadv m=4 T=2 | 10 | images/s | 50.0 (40.0–60.0) | 25.0 (25.0–25.0) | '
          '20.0 (20.0–20.0) | **2.00** (1.60–2.40) |') in made
  assert '| lenet | smoothadv m=4 T=2 | ours | 50% | 1 | 1.5 |' in made
  assert 'busy for 50% of the time at most. **Not a quiet machine' in made
  assert 'foolbox was left out: foolbox is not installed.' in made
  assert 'torch failed at lenet train: MemoryError: too much' in made


def test_name_of_results():
  assert hardware.name(record()['hardware'], record()['date']) == 'some-2-cores-2026-01-02'


# The command.


@pytest.mark.parametrize(('flag', 'value'), [
    ('--models=lenet,vgg', "'vgg'"), ('--suite=tpu', "'tpu'"), ('--noises=0', "'0'"),
    ('--rounds=x', "'x'"), ('--rounds=0', '0'), ('--seconds=-1', '-1'),
    ('--python-torch=/no/such', "'/no/such'")])
def test_mistakes_end_in_one_line(flag, value, capsys):
  with pytest.raises(SystemExit) as end:
    benchmark.parse([flag])
  assert end.value.code == 2
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith('error: ') and flag.partition('=')[0] in line and line.endswith(value)


def test_help_explains_itself(capsys):
  with pytest.raises(SystemExit):
    benchmark.parse(['--help'])
  assert 'torch-compile' in capsys.readouterr().out


def test_packages_that_are_missing_are_named(monkeypatch):
  monkeypatch.setattr(hardware, 'versions', lambda python: {'jax': '1', 'flax': '1', 'optax': '1'})
  options = argparse.Namespace(suite='cpu', contestants=DEFAULT_CONTESTANTS['cpu'])
  able, missing = benchmark.available(options, dict.fromkeys(
      ('ours', 'torch', 'torchattacks', 'foolbox', 'art'), 'python'))
  assert list(able) == ['ours', 'ours-glibc']
  assert missing == dict.fromkeys(
      ('torch', 'torch-nchw', 'torch-jemalloc', 'torch-plain', 'torchattacks', 'foolbox', 'art'),
      'torch')


@pytest.mark.parametrize(('found', 'missing'), [
    ({}, {'torch-jemalloc': 'libjemalloc.so.2'}), ({'LD_PRELOAD': 'x'}, {})])
def test_pytorch_with_jemalloc_is_left_out_where_it_is_not_installed(found, missing, monkeypatch):
  everything = dict.fromkeys(('jax', 'flax', 'optax', 'torch'), '1')
  monkeypatch.setattr(hardware, 'versions', lambda python: everything)
  monkeypatch.setattr(benchmark, 'jemalloc', lambda: found)
  options = argparse.Namespace(suite='cpu', contestants=['ours', 'torch', 'torch-jemalloc'])
  pythons = dict.fromkeys(('ours', 'torch'), 'python')
  assert benchmark.available(options, pythons)[1] == missing


def test_a_worker_has_its_contestants_malloc(monkeypatch):
  monkeypatch.setenv('LD_PRELOAD', 'libmine.so')
  monkeypatch.setenv('MALLOC_CONF', 'mine')
  monkeypatch.delenv('MALLOC_ARENA_MAX', raising=False)
  monkeypatch.setattr(process, 'jemalloc', lambda: {'LD_PRELOAD': 'libjemalloc.so.2'})
  found = {malloc: process.environment('cpu', malloc) for malloc in ('', 'glibc', 'jemalloc')}
  assert [env.get('LD_PRELOAD') for env in found.values()] == [None, None, 'libjemalloc.so.2']
  assert [env.get('MALLOC_ARENA_MAX') for env in found.values()] == [None, '1', None]
  assert not any('MALLOC_CONF' in env for env in found.values())


def test_the_ratio_is_never_that_of_another_of_ours():
  found = record()
  found['contestants']['ours-glibc'] = CONTESTANTS['cpu']['ours-glibc']._asdict()
  line = found['lines'][0]
  line['results']['ours-glibc'] = line['results']['ours']
  assert '**2.00**' in table.brief(found, line)
  del line['results']['ours']
  assert table.brief(found, line).endswith('ratio -')


def test_ours_alone(tmp_path):
  ended = subprocess.run(
      [sys.executable, '-m', 'benchmarks', '--quick', '--models=lenet', '--contestants=ours',
       '--noises=2', f'--name={tmp_path / "made"}'], capture_output=True, text=True, cwd=ROOT)
  assert ended.returncode == 0, ended.stderr
  found = json.loads((tmp_path / 'made.json').read_text())
  assert [line['work']['task'] for line in found['lines']] == list(TASKS)
  for line in found['lines']:
    measured = line['results']['ours']
    assert len(measured['seconds']) == 1 and measured['seconds'][0] > 0
    assert measured['peak_bytes']['process'] > 2**26
    assert results.share_of_peak(found, line, 'ours').median > 0
  assert found['versions']['ours']['jax'] == jax.__version__
  assert '| lenet | smoothadv m=2 T=2 | 4 | images/s |' in ended.stdout


def test_a_worker_that_dies_is_reported():
  asked = process.Worker(sys.executable, 'cpu')
  with pytest.raises(process.WorkerError) as error:
    asked.ask('start', work=Work('train', 'nonsense', 4), contestant=OURS, weights=None,
              device='cpu')
  asked.close()
  assert 'ended with status 1' in str(error.value)
  assert str(error.value).endswith("KeyError: 'nonsense'")


def test_a_worker_that_dies_loses_nothing_else(tmp_path, monkeypatch, capsys):
  broken = {'ours': OURS, 'broken': Contestant('unheard-of', 'float32')}
  monkeypatch.setitem(benchmark.CONTESTANTS, 'cpu', broken)
  monkeypatch.setitem(benchmark.PACKAGES, 'unheard-of', ())
  path = tmp_path / 'made'
  assert benchmark.main(['--quick', '--models=lenet', '--tasks=certify', f'--name={path}',
                         '--contestants=ours,broken']) == 0
  line, = json.loads(path.with_suffix('.json').read_text())['lines']
  assert line['results']['ours']['seconds'] and 'broken' not in line['results']
  assert 'its process ended with status 1' in line['failed']['broken']
  assert 'broken failed at lenet certify' in capsys.readouterr().out


def test_ours_needs_no_data_or_config_packages():
  block = """
import sys
for name in ('grain', 'tensorflow_datasets', 'ml_collections', 'sklearn', 'matplotlib', 'torch'):
  sys.modules[name] = None
from benchmarks import __main__, ours, worker
"""
  subprocess.run([sys.executable, '-c', block], check=True, cwd=ROOT)


# PyTorch does the same work.


def checks(work, weights, name):
  """What the contestant `name` answers, from the module of its kind."""
  contestant = CONTESTANTS['cpu'][name]
  return worker.implementation(contestant).build(work, contestant, weights, 'cpu').check()


@pytest.fixture(scope='session')
def torch_weights(tmp_path_factory):
  """model -> a file of PyTorch weights; skips without PyTorch."""
  torch = pytest.importorskip('torch')
  from benchmarks import torch_models
  folder = tmp_path_factory.mktemp('weights')

  def weights(model):
    path = folder / f'{model}.pth'
    if not path.exists():
      torch.save(torch_models.typical_weights(model), path)
    return str(path)

  return weights


@pytest.mark.parametrize('rival', ['torch', 'torch-nchw'])
@pytest.mark.parametrize('task', TASKS)
def test_pytorch_does_the_same_work(task, rival, torch_weights):
  work, weights = small_work(task), torch_weights('lenet')
  expected, found = checks(work, weights, 'ours'), checks(work, weights, rival)
  assert expected.keys() == found.keys()
  for quantity in found:
    np.testing.assert_allclose(found[quantity], expected[quantity], atol=2e-3, err_msg=quantity)


@pytest.mark.parametrize('model', ['resnet20', 'wrn_28_10', 'resnet50'])
def test_pytorch_has_the_same_networks(model, torch_weights):
  import torch

  from benchmarks import torch_models
  network = torch_models.create(model).eval()
  network.load_state_dict(torch.load(torch_weights(model), weights_only=True))
  images = np.random.default_rng(3).random((1, *MODELS[model].image_shape), np.float32)
  shape = MODELS[model]
  module = models.create(model, shape.num_classes)
  variables = ours.load(torch_weights(model), model, module)
  expected = models.logits_fn(module, variables, mean=shape.mean, std=shape.std)(images)
  with torch.no_grad():
    found = network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize('library', ['torchattacks', 'foolbox', 'art'])
def test_libraries_find_the_same_images(library, torch_weights):
  pytest.importorskip(library)
  work, weights = small_work('pgd10'), torch_weights('lenet')
  np.testing.assert_allclose(checks(work, weights, library)['adversarial'],
                             checks(work, weights, 'torch')['adversarial'], atol=1e-6)


# JPEGs.


@pytest.mark.parametrize('scale, most', [(1, 0.), (2, 4.)])
def test_jpegs_are_cut_to_the_same_images(scale, most):
  """Of 500x375 pixels Pillow's draft never has enough at half the size; of twice that it may."""
  rng = np.random.default_rng(0)
  images = [jpeg.made_up(rng, 500 * scale, 375 * scale) for _ in range(3)]
  assert 80_000 < len(images[0]) / scale**2 < 130_000
  for draws in (rng.random((3, decode.CROP_TRIES, 4)), [None] * 3):
    found = jpeg.measure(images, draws, rounds=1)
    assert {'pillow', 'draft'} <= {*found}
    assert found['pillow'][1] == 0 and found['draft'][1] <= most
    assert (found['draft'][1] > 0) == (scale > 1)
    assert all(len(rates) == 1 and rates[0] > 0 for rates, _ in found.values())


def test_a_fast_accelerator_waits_for_jpegs_and_a_slow_one_does_not(tmp_path):
  tiny_imagenet.write(tmp_path, num_train=16, num_validation=2)
  slow, fast = (jpeg.waiting(tmp_path, rate, batch_size=8, num_steps=5) for rate in (20., 1e6))
  # By a wide margin, as other work on the machine is waited for as well.
  assert slow['input_wait'] + 0.1 < fast['input_wait'] and slow['images_per_second'] <= 20


# Memory.


def test_memory_of_a_step_is_of_images_times_noises(tmp_path):
  def memory_of(rows, noises):
    config = digits.get_config('smoothadv')
    config.data.data_dir, config.method.num_noise = str(tmp_path), noises
    return memory.step_memory(
        experiment.build(sections.resolve(config), jax.devices()[:1]), rows)

  many, noisy = memory_of(64, 1), memory_of(16, 4)
  # 8x8 pixels, label, index and mask of each image.
  assert many['in'] - noisy['in'] == 48 * 4 * (64 + 3)
  assert many['out'] == noisy['out'] > noisy['in'] / 2
  assert abs(noisy['temporary'] / many['temporary'] - 1) < 0.1


def test_the_stages_on_a_gpu_need_few_packages():
  # Those of the launcher and of data are refused.
  code = """
import sys
for name in ('grain', 'tensorflow_datasets', 'ml_collections', 'torch', 'PIL', 'jinja2', 'launch'):
  sys.modules[name] = None
from benchmarks import gpu_stages, worker, ours
"""
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, timeout=300)


def test_time_that_a_stage_leaves_goes_to_the_later_ones():
  assert sum(gpu.share([name], 60) for name in gpu.SHARES) == 60 * len(gpu.SHARES)
  names, seconds, spent = list(gpu.SHARES), 600., []
  while names:
    spent.append(gpu.share(names, seconds))
    seconds, names = seconds - spent[-1], names[1:]
  assert seconds == pytest.approx(0) and min(spent) > 0
  assert gpu.share(['smoothadv'], 100.) == 100.


@pytest.mark.parametrize('name', ['draws', 'speed'])
@pytest.mark.parametrize('quick', [False, True])
def test_what_a_gpu_is_asked_for_is_known(name, quick):
  options = argparse.Namespace(out=Path('somewhere'), quick=quick, data=None)
  words = gpu.command(name, options, 60.)
  parsed = benchmark.parse(words[words.index('benchmarks') + 1:])
  assert parsed.suite == 'gpu' and set(parsed.contestants) <= set(CONTESTANTS['gpu'])
  assert results.path(parsed.name) == Path.cwd() / f'somewhere/benchmark-{name}.json'


@pytest.mark.parametrize('number', [1, 2, 7, 512])
def test_the_first_images_are_spread_over_all(number):
  order = gpu_stages.spread(number)
  assert sorted(order) == list(range(number))
  assert number < 512 or np.ptp(np.sort(np.diff(np.sort(order[:64])))) == 0


def test_crops_are_those_of_the_padded_image():
  image = np.random.default_rng(0).random((8, 8, 3), np.float32)
  padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
  crops = [padded[top:top + 8, left:left + 8][:, ::step] for top in range(9) for left in range(9)
           for step in (1, -1)]
  crop = jax.jit(gpu_stages.crop_flip)
  found = {next(number for number, each in enumerate(crops) if np.array_equal(each, made))
           for made in (np.asarray(crop(jax.random.key(seed), image)) for seed in range(200))}
  assert len(found) > 80  # Of 162, all as likely.


@pytest.mark.slow
def test_the_stages_on_a_gpu_in_miniature(tmp_path):
  subprocess.run([sys.executable, '-m', 'benchmarks.gpu', '--quick', f'--out={tmp_path}',
                  '--stages=path,gaussian,draws'], cwd=ROOT, check=True, timeout=1800)
  found = list(map(json.loads, (tmp_path / 'results.jsonl').read_text().splitlines()))
  assert [line['status'] for line in found] == ['done'] * 3
  path, gaussian, _ = found
  assert path['resumed_bit_equal'] == [True, True] and path['seeds_differ']
  assert path['certificates']['same_on_one_device'] and path['bounds']['crossings'] == 0
  assert gaussian['certified_images'] == 64 and gaussian['epochs'] == 1
  assert results_file(tmp_path / 'benchmark-draws.json')


def results_file(path):
  return json.loads(path.read_text())['lines']
