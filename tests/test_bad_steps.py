"""Steps whose loss is bad stop a training or leave no trace; what a long training measures."""

import contextlib
import functools
import itertools
import json
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_training

from launch import flags
from robust_jax import models, report, stages, training, workdir
from robust_jax.config import experiment, sections
from robust_jax.devices import parallel
from robust_jax.errors import NonFiniteLossError, UserError
from robust_jax.report import run as report_of_run
from robust_jax.stages.metrics import Metrics
from robust_jax.training import methods
from robust_jax.workdir import checkpoint, interrupts, monitoring

KEY = jax.random.key(5)


def method(key, network, params, batch_stats, batch, progress):
  """Standard training with factors of its loss and statistics; it counts how often it saw whom."""
  output = methods.standard(key, network, params, batch_stats, batch, progress)
  stats = jax.tree.map(lambda leaf: leaf * batch.aux['stats'].max(), output.batch_stats)
  return output._replace(loss=output.loss * batch.aux['loss'], batch_stats=stats,
                         memory={'seen': batch.aux['seen'] + 1})


def make_step(num_devices=1, **kwargs):
  model, variables = tiny_training.small_net(KEY)
  optimizer = training.OPTIMIZERS['adam'](lambda step: 0.1 / (1 + step), weight_decay=0.01)
  state = training.create_state(variables, optimizer, ema=True, memory={'seen': jnp.zeros(40)},
                                loss_mean='max_loss_jump' in kwargs)
  step = functools.partial(
      training.train_step, network=models.network(model, axis_name=parallel.AXIS), method=method,
      optimizer=optimizer, steps_per_epoch=5, axis_name=parallel.AXIS, ema_decay=0.9,
      **{'skip_bad': True, **kwargs})
  return state, parallel.map_train_step(step, jax.devices()[:num_devices])


def make_batches(factors):
  batch = tiny_training.random_batch(16)
  return [batch._replace(labels=(batch.labels + number) % 3,
                         aux={'loss': factor * jnp.ones(16), 'stats': jnp.ones(16)})
          for number, factor in enumerate(factors)]


def take_steps(step, state, batches, left_out=()):
  """(state, numbers of the skipped steps); those left out are not taken, which is done by hand."""
  later = lambda node: (node._replace(count=node.count + 1)
                        if isinstance(node, optax.ScaleByScheduleState) else node)
  skipped = []
  for number, batch in enumerate(batches):
    if number in left_out:
      state = state._replace(step=state.step + 1, opt_state=tuple(map(later, state.opt_state)))
      continue
    state, sums = step(state, batch, KEY)
    if sums.pop('skipped_steps'):
      skipped.append(number)
      assert not any(sums.values())
  return state, skipped


def spoiled(batch, kind):
  if kind == 'images':
    return batch._replace(images=batch.images.at[3].set(1e30))
  # Of a loss of 1e25 the squares of the gradient, which Adam keeps, are beyond float32.
  place, value = {'loss': ('loss', jnp.nan), 'steep': ('loss', 1e25), 'stats': ('stats', jnp.inf)
                  }[kind]
  return batch._replace(aux={**batch.aux, place: batch.aux[place].at[5].set(value)})


@pytest.mark.parametrize('num_devices, kind, kwargs', [
    (1, 'images', {}), (2, 'images', {}), (2, 'loss', {}), (1, 'steep', {}), (1, 'stats', {}),
    (1, 'loss', {'accumulation': 4}), (1, 'loss', {'max_loss_jump': 50.})])
def test_a_skipped_step_has_not_happened(num_devices, kind, kwargs):
  state, step = make_step(num_devices, **kwargs)
  batches = make_batches([1.] * 6)
  batches[2:4] = [spoiled(batch, kind) for batch in batches[2:4]]
  found, skipped = take_steps(step, state, batches)
  assert skipped == [2, 3] and training.all_finite(found)
  expected, _ = take_steps(step, state, batches, left_out=(2, 3))
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert int(found.step) == 6 and found.memory['seen'].max() == 4
  schedules = [node for node in found.opt_state if isinstance(node, optax.ScaleByScheduleState)]
  assert [int(node.count) for node in schedules] == [6]


def test_without_a_bad_step_both_ways_are_the_same():
  results = []
  for skip in (False, True):
    state, step = make_step(skip_bad=skip)
    for batch in make_batches([1.] * 3):
      state, _ = step(state, batch, KEY)
    results.append(state)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *results)


def test_a_jump_is_above_a_multiple_of_the_mean_of_the_steps_that_counted():
  state, step = make_step(max_loss_jump=2.5)
  _, unguarded = make_step()
  total = weight = 0.
  skipped, expected = [], []
  # The mean forgets the first loss, and does not learn of a jump.
  for number, batch in enumerate(make_batches([9.] + [1.] * 30 + [4.] * 3 + [1., 1.6, 9., 1.])):
    _, sums = unguarded(state._replace(loss_mean=None), batch, KEY)
    loss = float(sums['loss'] / sums['count'])
    if weight and loss > 2.5 * total / weight:
      expected.append(number)
    else:
      total, weight = 0.95 * total + 0.05 * loss, 0.95 * weight + 0.05
    state, sums = step(state, batch, KEY)
    skipped += [number] if sums['skipped_steps'] else []
  assert skipped == expected
  assert {31, 32, 36} <= {*skipped} and not {0, 1, 35} & {*skipped}


CODE = '''
import jax.numpy as jnp
from robust_jax.training import methods


def bad_from(key, network, params, batch_stats, batch, progress, *, first: int = 12, count: int = 2,
             factor: float = 0.):
  """The loss of `count` steps is NaN, or `factor` times what it is."""
  output = methods.standard(key, network, params, batch_stats, batch, progress)
  bad = (progress.step >= first) & (progress.step < first + count)
  return output._replace(loss=output.loss * jnp.where(bad, factor or jnp.nan, 1.))
'''
WORDS = ['--config=configs/digits.py:gaussian', '--config.model.name=mlp', '--config.sigma=0.',
         '--config.method.name=bad_steps_method:bad_from', '--config.train.num_epochs=2.',
         '--config.train.log_every=4', '--config.train.checkpoint_every=5',
         '--config.train.ema_decay=0.9', '--config.train.eval_every_epochs=2.']
SKIP = '--config.train.on_bad_loss=skip'


@pytest.fixture
def train(tmp_path, monkeypatch):
  """(name of a workdir, words) -> its folder, trained."""
  (tmp_path / 'bad_steps_method.py').write_text(CODE)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'bad_steps_method', raising=False)

  def train(name, *words):
    config = sections.resolve(flags.parse(['launch', *WORDS, *words]).config)
    sections.check_workdir(workdir_of(name), config)
    run = experiment.build(config, jax.devices()[:2])
    workdir.describe(run, workdir_of(name), [])
    stages.run_stage('train', run, workdir_of(name))
    return workdir_of(name)

  def workdir_of(name):
    (tmp_path / name).mkdir(exist_ok=True)
    return tmp_path / name

  return train


def lines_of(folder):
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  return [{name: value for name, value in line.items() if name not in monitoring.MEASURED}
          for line in lines]


def assert_same(one, two):
  assert lines_of(one) == lines_of(two)
  last = checkpoint.latest_step(one)
  (leaves, about), (others, about_others) = (checkpoint.read(each, last) for each in (one, two))
  assert leaves.keys() == others.keys() and about['progress'] == about_others['progress']
  for name, leaf in leaves.items():
    np.testing.assert_array_equal(leaf, others[name], err_msg=name)


def test_a_training_that_stopped_goes_on_by_skipping_or_in_another_workdir(train, tmp_path):
  with pytest.raises(NonFiniteLossError, match=f'step 15.*step 10 .*{tmp_path / "one"} .*{SKIP}'):
    train('one')
  assert checkpoint.latest_step(tmp_path / 'one') == 10
  assert workdir.stages(tmp_path / 'one')['train']['status'] == workdir.STOPPED
  smaller = '--config.schedule.learning_rate=0.001'
  with pytest.raises(UserError, match='config.schedule.learning_rate was'):
    train('one', smaller)
  other = train('other', f'--config.weights={tmp_path / "one"}', smaller, SKIP,
                '--config.train.num_steps=5')
  assert checkpoint.latest_step(other) == 5
  one, two = train('one', SKIP), train('two', SKIP)
  assert_same(one, two)
  lines = [line for line in lines_of(one) if line['split'] == 'train']
  assert [line['skipped_steps'] for line in lines if line['step'] == 16] == [2]
  assert sum('skipped_steps' in line for line in lines) == 1
  assert all(np.isfinite(line['loss']) for line in lines)
  figures = {row[0]: row[1] for row in report_of_run.key_figures(report.load(one))}
  assert figures['Skipped training steps'] == '2' and 'Training speed' in figures


def test_a_loss_that_is_not_finite_is_not_saved_with_finite_parameters(train, tmp_path):
  # Its sum is beyond float32, its gradient is not.
  with pytest.raises(NonFiniteLossError, match='step 15.*step 10 '):
    train('one', '--config.method.factor=1e37', '--config.method.first=14',
          '--config.train.log_every=40')
  assert checkpoint.latest_step(tmp_path / 'one') == 10


@pytest.mark.parametrize('words', [
    [SKIP, '--config.method.count=7'],
    [SKIP, '--config.method.factor=8.', '--config.train.max_loss_jump=3.']])
def test_an_interrupted_training_skips_the_same(words, train, monkeypatch):
  undisturbed = train('undisturbed', *words)
  assert any(line.get('skipped_steps') for line in lines_of(undisturbed))
  for step in (3, 11, 2):  # Each of so many steps, the second of them among those that are skipped.
    with monkeypatch.context() as patch, pytest.raises(interrupts.Interrupted):
      asked = itertools.count(1)
      request = type('Request', (), {'signal': property(
          lambda self, asked=asked, step=step: signal.SIGTERM if next(asked) >= step else None)})
      patch.setattr(interrupts, 'postponed', lambda request=request: contextlib.nullcontext(
          request()))
      train('disturbed', *words)
  assert_same(undisturbed, train('disturbed', *words))


@pytest.mark.parametrize('count', [10, 11])
def test_more_than_ten_skipped_steps_in_a_row_end_the_training(count, train, tmp_path):
  words = [SKIP, f'--config.method.count={count}', '--config.method.first=3']
  if count == 10:
    assert checkpoint.latest_step(train('one', *words)) == 46
    line = next(line for line in lines_of(tmp_path / 'one') if line['step'] == 8)
    assert line['skipped_steps'] == 4 and 'loss' not in line
    return
  for _ in range(2):  # From the checkpoint of step 10, whose row began before it, as well.
    with pytest.raises(NonFiniteLossError, match='step 14: 11 steps in a row') as error:
      train('one', *words)
    assert SKIP not in str(error.value) and error.value.exit_status == 3
  assert checkpoint.latest_step(tmp_path / 'one') == 10


@pytest.mark.parametrize('words', [
    ['--config.train.max_loss_jump=3.'], [SKIP, '--config.train.max_loss_jump=1.'],
    ['--config.train.on_bad_loss=ignore']])
def test_fields_that_do_not_go_together_are_refused(words, train):
  with pytest.raises(UserError, match='config.train.(max_loss_jump|on_bad_loss) must be'):
    train('one', *words)


def test_waiting_for_input_is_measured_where_no_step_is_under_way(tmp_path):
  def run(is_ready):
    metrics = Metrics(tmp_path, 0, None)
    slow = (time.sleep(0.02) or number for number in range(6))
    for _ in metrics.timed(slow):
      metrics.add({'loss': np.float32(8.), 'count': Count(is_ready)})
    return metrics.flush(6, 1.)

  busy, idle = run(False), run(True)
  # Of the first step the result is fetched: the second waits.
  assert busy['input_wait'] + 0.2 < idle['input_wait'] <= 1.
  assert 0 < idle['steps_per_second'] < 50
  np.testing.assert_allclose(idle['images_per_second'], 4 * idle['steps_per_second'])
  assert idle['loss'] == 2.


class Count(np.ndarray):
  """An array that may still be on its way."""

  def __new__(cls, is_ready):
    array = np.asarray(4., np.float32).view(cls)
    array.ready = is_ready
    return array

  def is_ready(self):
    return self.ready


def test_a_log_file_has_a_sign_of_life(capfd):
  with monitoring.heartbeat('certify', seconds=0.1):
    time.sleep(0.8)
    bar = monitoring.bar(desc='attack', total=9, unit='image')
    bar.update(2)
    time.sleep(0.8)
    bar.close()
  lines = capfd.readouterr().err.splitlines()
  assert [line.split(':')[0] for line in lines[:2]] == ['certify'] * 2
  assert sum(line.startswith('attack: 2/9') for line in lines) >= 2
  time.sleep(0.3)
  assert capfd.readouterr().err == ''  # None after the end.


def test_a_bar_in_a_log_file_ends_with_one_line(capfd):
  for seconds in (60, 0):  # Between lines: the last update has none of its own, or has one.
    bar = monitoring.bar(desc='attack', total=3)
    bar.mininterval = seconds
    bar.update(3)
    bar.close()
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(' ')[:2] for line in lines] == [['attack:', '0/3'], ['attack:', '3/3']]
