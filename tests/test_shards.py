"""Shards of a run: their logs, merged, are those of one process; what does not fit is named."""

import dataclasses
import json
import shutil

import jax
import pytest
from test_sandwich import IMAGES, load, make_run

from launch import flags
from robust_jax import stages, workdir
from robust_jax.analysis import __main__ as command_line
from robust_jax.errors import UserError
from robust_jax.stages import images, shards, weights
from robust_jax.workdir import records

TOTAL = 3
FILES = {'attack': 'attack.jsonl', 'certify': 'certify.jsonl', 'sandwich': 'sandwich.jsonl'}


def judge(run, folder):
  folder.mkdir(parents=True, exist_ok=True)
  workdir.describe(run, folder, ['--some', 'words'])
  for stage in shards.STAGES:
    stages.run_stage(stage, run, folder)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(a workdir of one process, one with the shards of three)."""
  root = tmp_path_factory.mktemp('shards')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(weights, 'load', load)
    run = make_run(root)
    judge(run, root / 'whole')
    for number in (2, 0, 1):
      part = dataclasses.replace(run, shard=(number, TOTAL), devices=jax.devices()[:number + 1])
      judge(part, shards.folder(root / 'shared', part.shard))
  return root / 'whole', root / 'shared'


@pytest.fixture
def shared(made, tmp_path):
  return shutil.copytree(made[1], tmp_path / 'shared', symlinks=True)


def entries(path):
  """The lines of a log by image, without what may change."""
  header, *rest = records.read(path)
  header = header['header']
  rows = {entry.pop('idx'): entry for entry in rest if 'idx' in entry}
  for row in rows.values():
    row.pop('time', None)
  return header.get('settings', header), dict(sorted(rows.items()))


def test_every_image_is_in_one_shard():
  run = make_run_of(10)
  parts = [images.chosen(dataclasses.replace(run, shard=(i, 4)), run.evaluation) for i in range(4)]
  assert parts == [[0, 8, 16], [2, 10, 18], [4, 12], [6, 14]]
  assert images.chosen(run, run.evaluation) == list(range(0, 20, 2))


def make_run_of(number):
  @dataclasses.dataclass(frozen=True)
  class Settings:
    stride: int = 2
    num_images: int = number
    num_examples: int = 100

  @dataclasses.dataclass(frozen=True)
  class Run:
    test_data = evaluation = Settings()
    shard: tuple = (0, 1)

  return Run()


def test_merged_logs_are_those_of_one_process(made, shared, capsys):
  command_line.main(['merge', str(shared)])
  assert f'certify.jsonl: {len(IMAGES)} images of {TOTAL} shards' in capsys.readouterr().out
  whole = made[0]
  for name in FILES.values():
    assert entries(shared / name) == entries(whole / name)
  assert (shared / 'certify.tsv').read_text().count('\n') == len(IMAGES) + 1
  ours, theirs = workdir.stages(shared), workdir.stages(whole)
  assert ours.keys() == theirs.keys() == FILES.keys()
  assert ours['certify']['network'] == pytest.approx(theirs['certify']['network'])
  assert {record['status'] for record in ours.values()} == {'done'}
  stages.STAGES['report'](None, shared)
  assert (shared / 'report.html').exists()
  with pytest.raises(UserError, match=r'has a (attack|certify)\.jsonl of its own'):
    shards.merge(shared)


def change(path, edit):
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  edit(lines)
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def drop(lines):
  del lines[1]


def test_other_environments_stay_with_their_images(shared):
  one = shared / 'shards' / '1-of-3' / 'certify.jsonl'
  change(one, lambda lines: lines[0]['header']['environment'].update(device='other'))
  shards.merge(shared)
  devices, seen = {}, None
  for line in records.read(shared / 'certify.jsonl'):
    seen = line.get('environment', line.get('header', {}).get('environment', seen))
    if 'idx' in line:
      devices[line['idx']] = seen['device']
  assert {idx for idx, device in devices.items() if device == 'other'} == {1, 4}


@pytest.mark.parametrize(('spoil', 'message'), [
    (lambda folder: shutil.rmtree(folder / '1-of-3'), 'lacks the shards 1/3'),
    (lambda folder: shutil.copytree(folder / '1-of-3', folder / '1-of-2'), 'of 2 and of 3'),
    (lambda folder: shutil.rmtree(folder), 'has no shards'),
    (lambda folder: change(folder / '2-of-3' / 'certify.jsonl', drop), 'has image 2'),
    (lambda folder: change(folder / '2-of-3' / 'certify.jsonl',
                           lambda lines: lines[1].update(idx=1)), 'image 1 is in 1-of-3 too'),
    (lambda folder: change(folder / '2-of-3' / 'certify.jsonl', lambda lines: lines[0]['header'][
        'settings'].update(classifier_sha256='b')), 'classifier_sha256'),
    (lambda folder: edit_record(folder / '0-of-3', status='running'), '0-of-3.*not finished'),
    (lambda folder: edit_record(folder / '2-of-3', seed=5), '2-of-3.*config.seed was 0, is 5'),
])
def test_what_does_not_fit_is_named_and_nothing_is_written(spoil, message, shared):
  spoil(shared / 'shards')
  with pytest.raises(UserError, match=message):
    shards.merge(shared)
  assert not [*shared.glob('*.jsonl')] and not (shared / 'stages.json').exists()


def edit_record(folder, **changes):
  found = workdir.stages(folder)
  (found['certify']['config'] if 'seed' in changes else found['certify']).update(changes)
  workdir.write_json(folder / 'stages.json', found)


def test_a_shard_has_the_training_of_its_workdir(tmp_path):
  config = json.loads(json.dumps(make_run(tmp_path).config))
  (tmp_path / 'run' / 'checkpoints' / '7').mkdir(parents=True)
  workdir.write_json(tmp_path / 'run' / 'stages.json', {
      'train': {'status': 'done', 'last_step': 7, 'config': config, 'seconds': 1.}})
  own = shards.folder(tmp_path / 'run', (1, 4))
  own.mkdir(parents=True)
  for _ in range(2):
    shards.begin(tmp_path / 'run', (1, 4), config, {'certify'})
  assert own == tmp_path / 'run' / 'shards' / '1-of-4' and (own / 'checkpoints' / '7').is_dir()
  assert weights.finished_step(own) == 7
  with pytest.raises(UserError, match='config.epsilon was'):
    shards.begin(tmp_path / 'run', (1, 4), {**config, 'epsilon': 0.125}, {'certify'})
  with pytest.raises(UserError, match="attack.name is 'autoattack'"):
    shards.begin(tmp_path / 'run', (1, 4), {**config, 'attack': {'name': 'autoattack'}}, {'attack'})


@pytest.mark.parametrize(('words', 'message'), [
    (['--shard=4/4'], "I/N.*'4/4'"), (['--shard=1'], "I/N.*'1'"), (['--shard=-1/4'], 'I/N'),
    (['--shard=1/4', '--stages=train'], "'train'"), (['--shard=1/4', '--redo=train'], "'train'"),
    (['--shard=1/4', '--sweep'], '--sweep')])
def test_flags_that_do_not_go_together(words, message):
  with pytest.raises(UserError, match=message):
    flags.parse(['launch', *words])


def test_a_shard_judges_and_no_more():
  given = flags.parse(['launch', '--shard=1/4'])
  assert given.shard == (1, 4) and given.stages == [*shards.STAGES]
