"""workdir.records: files of JSON lines that go on after a crash."""

import pytest

from robust_jax.errors import UserError
from robust_jax.workdir import records

HEADER = {'header': {'sigma': 0.5}}


@pytest.mark.parametrize('header', [None, HEADER])
def test_a_crash_at_any_byte_loses_at_most_the_last_line(header, tmp_path):
  path = tmp_path / 'log.jsonl'
  first = [] if header is None else [header]
  entries = [{'idx': 0, 'counts': [1, 2]}, {'idx': 1}, {'idx': 2}]
  assert records.resume(path, header) == first
  records.append(path, entries[0])
  records.append(path, *entries[1:])
  whole = path.read_bytes()
  for size in range(len(whole) + 1):
    path.write_bytes(whole[:size])
    lines = whole[:size + 1].count(b'\n')  # A line needs its content, not its newline.
    assert records.read(path) == [*first, *entries][:lines]
    ends = [number for number, byte in enumerate(whole) if byte == ord('\n')]
    assert records.is_cut_off(path) == (size not in {0, *ends, *(end + 1 for end in ends)})
    kept = records.resume(path, header)
    assert kept == [*first, *entries][:max(lines, len(first))]
    records.append(path, *entries[len(kept) - len(first):])
    assert path.read_bytes() == whole


def test_entries_that_are_not_kept_are_removed(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step":1}\n{"step": 7}\n{"step":3}\n{"st')
  assert records.resume(path, keep=lambda entry: entry['step'] <= 3) == [{'step': 1}, {'step': 3}]
  assert path.read_text() == '{"step":1}\n{"step":3}\n'


def test_a_damaged_line_is_named(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  for line in ('{"step": 7', '[]', ''):
    path.write_text(f'{{"step":1}}\n{line}\n{{"step":3}}\n')
    for call in (records.read, records.resume):
      with pytest.raises(UserError, match='metrics.jsonl:2: '):
        call(path)


def test_other_settings_are_named(tmp_path):
  records.check_same(tmp_path, {'epsilons': [1, 2]}, {'epsilons': (1, 2)})
  with pytest.raises(UserError, match='n is 3 but absent in the log.*--redo') as error:
    records.check_same(tmp_path, {'sigma': 1}, {'sigma': 1, 'n': 3})
  assert 'sigma' not in str(error.value) and '\n' not in str(error.value)
