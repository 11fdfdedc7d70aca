"""certification.log: reading published and own logs, resuming, crashes, honest rounding."""

import json
import os
import pathlib
import re

import numpy as np
import pytest

from robust_jax import types
from robust_jax.certification import log
from robust_jax.errors import UserError

SETTINGS = {'sigma': 0.25, 'alpha': 0.001, 'n': 100, 'shape': (8, 8)}
ENVIRONMENT = {'versions': {'jax': '0.10.2'}, 'device': 'cpu'}
TITLE = 'idx\tlabel\tpredict\tradius\tcorrect\ttime\n'


def record(idx, label=3, predict=3, radius=0.123456789, time=1.5):
  return {'idx': idx, 'label': label, 'predict': predict, 'radius': radius,
          'correct': int(label == predict), 'time': time, 'p_lower': 0.9, 'counts': [1, 99]}


def append(stem, *indices, settings=SETTINGS, environment=ENVIRONMENT):
  with log.open_for_append(stem, settings, environment) as writer:
    writer.write([record(idx) for idx in indices])
    return set(writer.done)


def test_round_trip_and_rounding_down(tmp_path):
  stem = tmp_path / 'deep' / 'certify'
  radii = [0.1, 0.99999999, 0.123456789, 0.3, 1.28, 0.0, 2.5e-6]
  with log.open_for_append(stem, SETTINGS, ENVIRONMENT) as writer:
    assert writer.done == set()
    writer.write([record(i, radius=radius) for i, radius in enumerate(radii)])
    writer.write([record(20, predict=-1, radius=0.0, time=3 * 86400 + 5.25)])
    assert writer.done == {*range(7), 20}
  truth, table = log.read(f'{stem}.jsonl'), log.read(f'{stem}.tsv')
  np.testing.assert_array_equal(truth.radius, [*radii, 0.0])
  assert (table.radius <= truth.radius).all()
  assert (truth.radius - table.radius < 1e-5).all()
  for name in ('idx', 'label', 'predict', 'correct', 'time'):
    np.testing.assert_array_equal(getattr(truth, name), getattr(table, name))
  assert truth.settings == {**SETTINGS, 'shape': [8, 8]}
  assert truth.environments == [ENVIRONMENT]
  assert (table.settings, table.environments) == ({}, [])
  lines = pathlib.Path(f'{stem}.tsv').read_text().splitlines(keepends=True)
  assert lines[0] == TITLE
  assert lines[2] == '1\t3\t3\t0.99999\t1\t0:00:01.500000\n'
  assert lines[-1] == '20\t3\t-1\t0.00000\t0\t3 days, 0:00:05.250000\n'


def test_records_of_a_certificate(tmp_path):
  certificate = types.Certificate(
      prediction=np.array([4, -1]), radius=np.array([0.5, 0.0]), p_lower=np.array([0.97, 0.4]),
      counts0=np.array([[1, 9], [5, 5]]), counts=np.array([[0, 99], [50, 49]]))
  rows = log.records(np.array([20, 40]), np.array([4, 7]), certificate, 2.0)
  assert rows[0] == {'idx': 20, 'label': 4, 'predict': 4, 'radius': 0.5, 'correct': 1,
                     'time': 2.0, 'p_lower': 0.97, 'counts0': [1, 9], 'counts': [0, 99]}
  with log.open_for_append(tmp_path / 'certify', SETTINGS, ENVIRONMENT) as writer:
    writer.write(rows)
  result = log.read(tmp_path / 'certify.jsonl')
  np.testing.assert_array_equal(result.predict, [4, -1])
  np.testing.assert_array_equal(result.correct, [True, False])


def test_resume_adds_and_records_another_environment(tmp_path):
  stem = tmp_path / 'certify'
  other = {'versions': {'jax': '0.12.0'}, 'device': 'tpu'}
  assert append(stem, 0, 1) == {0, 1}
  assert append(stem, environment=other) == {0, 1}  # nothing written: nothing recorded
  assert log.read(f'{stem}.jsonl').environments == [ENVIRONMENT]
  assert append(stem, 2, environment=other) == {0, 1, 2}
  assert append(stem, 3, environment=other) == {0, 1, 2, 3}
  assert log.read(f'{stem}.jsonl').environments == [ENVIRONMENT, other]
  kinds = ['header', 'idx', 'idx', 'environment', 'idx', 'idx']
  lines = pathlib.Path(f'{stem}.jsonl').read_text().splitlines()
  assert [next(iter(json.loads(line))) for line in lines] == kinds
  np.testing.assert_array_equal(log.read(f'{stem}.tsv').idx, range(4))


def test_a_crash_at_any_byte_loses_at_most_the_unfinished_line(tmp_path):
  stem = tmp_path / 'certify'
  append(stem, 0, 1, 2)
  whole = (tmp_path / 'certify.jsonl').read_bytes()
  table = (tmp_path / 'certify.tsv').read_bytes()
  for size in range(0, len(whole) + 1, 7):
    (tmp_path / 'certify.jsonl').write_bytes(whole[:size])
    (tmp_path / 'certify.tsv').unlink(missing_ok=True)
    kept = max(whole[:size + 1].count(b'\n') - 1, 0)  # a line needs its content, not its newline
    assert len(log.read(tmp_path / 'certify.jsonl').idx) == kept
    assert append(stem, *range(kept, 3)) == {0, 1, 2}
    assert (tmp_path / 'certify.jsonl').read_bytes() == whole
    assert (tmp_path / 'certify.tsv').read_bytes() == table


def test_images_on_their_way_are_kept_beside_the_log(tmp_path):
  stem, progress = tmp_path / 'certify', tmp_path / 'certify.progress.json'
  way = lambda *indices: [{'idx': idx, 'looks': [[20, idx]]} for idx in indices]
  with log.open_for_append(stem, SETTINGS, ENVIRONMENT) as writer:
    assert writer.begun == {}
    writer.write([record(0)], way(1, 2))
    writer.write([], way(1, 2, 5))
  kept = progress.read_bytes()
  before = (tmp_path / 'certify.jsonl').read_bytes()
  other = {**ENVIRONMENT, 'device': 'gpu'}
  with log.open_for_append(stem, SETTINGS, other) as writer:
    assert writer.begun == dict(zip((1, 2, 5), way(1, 2, 5)))
    assert (tmp_path / 'certify.jsonl').read_bytes() == before
    writer.write([], way(1, 2, 5))  # The other environment has drawn for them.
    assert log.read(f'{stem}.jsonl').environments == [ENVIRONMENT, other]
    writer.write([record(1), record(2)], way(5))
  # A crash after the log and before the progress was written.
  progress.write_bytes(kept)
  with log.open_for_append(stem, SETTINGS, other) as writer:
    assert list(writer.begun) == [5]
    writer.write([record(5)])
    assert writer.begun == {} and not progress.exists()
  assert [entry['idx'] for entry in log.read_entries(f'{stem}.jsonl')] == [0, 1, 2, 5]
  np.testing.assert_array_equal(log.read(f'{stem}.tsv').idx, [0, 1, 2, 5])


def test_the_table_is_made_from_the_json_lines_however_a_stage_ends(tmp_path):
  stem = tmp_path / 'certify'
  append(stem, 0, 1)
  table = tmp_path / 'certify.tsv'
  whole = table.read_text()
  table.write_text(whole[:-20])
  assert len(log.read(table).idx) == 1  # the torn last line is dropped
  append(stem)
  assert table.read_text() == whole
  with pytest.raises(KeyboardInterrupt), log.open_for_append(stem, SETTINGS, ENVIRONMENT) as writer:
    writer.write([record(2)])
    raise KeyboardInterrupt
  np.testing.assert_array_equal(log.read(table).idx, range(3))
  assert sorted(os.listdir(tmp_path)) == ['certify.jsonl', 'certify.tsv']


def test_other_settings_are_refused_by_name(tmp_path):
  stem = tmp_path / 'certify'
  append(stem, 0)
  before = (tmp_path / 'certify.jsonl').read_bytes()
  settings = {'sigma': 0.5, 'alpha': 0.001, 'shape': [8, 8], 'seed': 1}
  with pytest.raises(UserError) as caught:
    append(stem, 1, settings=settings)
  message = str(caught.value)
  for part in ('certify.jsonl', 'sigma is 0.5 but 0.25 in the log',
               'n is absent but 100 in the log', 'seed is 1 but absent in the log'):
    assert part in message
  assert 'alpha' not in message and 'shape' not in message and '\n' not in message
  assert (tmp_path / 'certify.jsonl').read_bytes() == before


def test_a_table_without_its_twin_is_never_overwritten(tmp_path):
  (tmp_path / 'certify.tsv').write_text(TITLE + '0\t1\t1\t0.5\t1\t0:00:01\n')
  with pytest.raises(UserError, match='certify.tsv'):
    append(tmp_path / 'certify', 1)


def test_an_image_enters_once_and_writes_are_all_or_nothing(tmp_path):
  stem = tmp_path / 'certify'
  append(stem, 0)
  for bad in ([record(5), record(0)], [record(5), record(5)], [record(5), {'idx': 6}],
              [record(5), record(6, radius=-1.0)], [record(5), record(6, radius=float('nan'))]):
    with (log.open_for_append(stem, SETTINGS, ENVIRONMENT) as writer,
          pytest.raises(ValueError)):
      writer.write(bad)
    np.testing.assert_array_equal(log.read(f'{stem}.jsonl').idx, [0])
  twice = (tmp_path / 'certify.jsonl').read_text() + json.dumps(record(0)) + '\n'
  (tmp_path / 'certify.jsonl').write_text(twice)
  with pytest.raises(UserError, match='idx 0 occurs more than once'):
    log.read(f'{stem}.jsonl')


@pytest.mark.parametrize('line, part', [
    ('0\t1\t1\tfar\t1\t0:00:01', "radius .* 'far'"),
    ('0\t1\t1\tinf\t1\t0:00:01', "radius .* 'inf'"),
    ('0\t1\t1\t-0.5\t1\t0:00:01', "radius .* '-0.5'"),
    ('0\t1\t-2\t0.5\t0\t0:00:01', "predict .* '-2'"),
    ('0\t1\t2\t0.5\t1\t0:00:01', "correct .* '1'"),
    ('0\t1\t1\t0.5\t1\tnoon', "time .* 'noon'"),
    ('0\t1\t1\t0.5\t1', '6 values'),
])
def test_malformed_table_lines_name_file_line_value_and_range(tmp_path, line, part):
  path = tmp_path / 'sigma_0.25'
  path.write_text(TITLE + '7\t1\t1\t0.5\t1\t2.5\n' + line + '\n')
  with pytest.raises(UserError) as caught:
    log.read(path)
  assert str(caught.value).startswith(f'{path}:3: ')
  assert re.search(part, str(caught.value))
  path.write_text(TITLE + '7\t1\t1\t0.5\t1\t2.5\n' + line)  # the same line, torn
  assert len(log.read(path).idx) == 1


@pytest.mark.parametrize('number, text', [
    (1, '{"idx": 0}'), (1, '{"header": 1}'), (2, '[]'), (2, '{"idx": 0'), (2, '{"environment": 1}'),
    (2, '{"header": {"settings": {}, "environment": {}}}'), (2, '{"idx": true}'),
])
def test_malformed_json_lines(tmp_path, number, text):
  lines = ['{"header": {"settings": {}, "environment": {}}}', json.dumps(record(0))]
  lines[number - 1] = text
  path = tmp_path / 'certify.jsonl'
  path.write_text('\n'.join([*lines, '']))
  with pytest.raises(UserError, match=f'certify.jsonl:{number}: '):
    log.read(path)


def test_empty_short_and_foreign_tables(tmp_path):
  path = tmp_path / 'sigma_1.00'
  for text in ('', TITLE):
    path.write_text(text)
    empty = log.read(path)
    assert [len(column) for column in empty[:6]] == [0] * 6
    assert empty.idx.dtype == np.int64 and empty.correct.dtype == bool
  path.write_text('label\tidx\n0\t1\n')
  with pytest.raises(UserError, match='sigma_1.00:1: '):
    log.read(path)
  with pytest.raises(UserError, match='No such file'):
    log.read(tmp_path / 'absent')


def test_published_logs_read():
  root = os.environ.get('ROBUST_JAX_TEST_DATA')
  if not root:
    pytest.skip('ROBUST_JAX_TEST_DATA is not set')
  paths = sorted(pathlib.Path(root, 'reference_logs').rglob('sigma_*'))
  logs = {str(path): log.read(path) for path in paths}
  sizes = [len(one.idx) for one in logs.values()]
  assert (len(sizes), sizes.count(0)) == (53, 10)
  name = next(name for name in logs if 'cohen2019/cifar10/resnet110/noise_0.25/test/sigma_0.25'
              in name)
  lines = [line.split('\t') for line in pathlib.Path(name).read_text().splitlines()[1:]]
  np.testing.assert_array_equal(logs[name].radius, [float(line[3]) for line in lines])
  np.testing.assert_array_equal(logs[name].correct, [line[4] == '1' for line in lines])
