"""Shards of a run: their logs, merged, are those of one process; what does not fit is named."""

import dataclasses
import json
import shutil

import jax
import pytest
from test_sandwich import IMAGES, load, make_run

from launch import flags
from launch import run as launcher
from robust_jax import stages, workdir
from robust_jax.analysis import __main__ as command_line
from robust_jax.errors import UserError
from robust_jax.stages import images, shards, weights
from robust_jax.workdir import records

TOTAL = 3
FILES = {stage: f'{stage}.jsonl' for stage in ('attack', 'certify', 'sandwich', 'bound')}


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
  rows = {(entry.pop('idx'), entry.get('epsilon')): entry for entry in rest if 'idx' in entry}
  for row in rows.values():
    for name in ('time', 'seconds'):
      row.pop(name, None)
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
  # Again: what a merge has made is made anew; what it has not is not touched.
  before = (shared / 'certify.jsonl').read_bytes()
  shards.merge(shared)
  assert (shared / 'certify.jsonl').read_bytes() == before


def test_results_of_ones_own_are_not_replaced(shared):
  shutil.copy(shared / 'shards' / '0-of-3' / 'config.json', shared)
  (shared / 'certify.tsv').write_text('mine')
  with pytest.raises(UserError, match=r'has certify\.tsv of its own'):
    shards.merge(shared)
  assert (shared / 'certify.tsv').read_text() == 'mine' and not (shared / 'attack.jsonl').exists()


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
  environments = [line for line in records.read(shared / 'certify.jsonl') if 'environment' in line]
  assert len(environments) == 1
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
    (lambda folder: change(folder / '2-of-3' / 'certify.jsonl', drop), 'must have 2 images, got 1'),
    (lambda folder: change(folder / '2-of-3' / 'attack.jsonl', lambda lines: lines.pop()),
     'must have 2 images, got 1'),
    (lambda folder: (folder / '2-of-3' / 'certify.jsonl').write_text(''), 'settings|2-of-3'),
    (lambda folder: change(folder / '1-of-3' / 'certify.jsonl',
                           lambda lines: lines[1].update(radius='far')), '1-of-3.*radius'),
    (lambda folder: workdir.write_json(folder.parent / 'stages.json', {
        'train': {'status': 'done'}}), 'another training'),
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
  assert not [*shared.glob('*.jsonl')] and not (shared / 'config.json').exists()


def edit_record(folder, **changes):
  found = workdir.stages(folder)
  (found['certify']['config'] if 'seed' in changes else found['certify']).update(changes)
  workdir.write_json(folder / 'stages.json', found)


@pytest.fixture
def trained(tmp_path, monkeypatch):
  """(a config, a workdir with a training by it)."""
  monkeypatch.setattr(weights, 'load', load)
  config = json.loads(json.dumps(make_run(tmp_path).config))
  (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
  workdir.write_json(tmp_path / 'run' / 'config.json', config)
  workdir.write_json(tmp_path / 'run' / 'stages.json', {
      'train': {'status': 'done', 'last_step': 7, 'config': config, 'seconds': 1.}})
  return config, tmp_path / 'run'


def launch(config, folder, shard, *wanted):
  launcher.run_stages(config, shards.check(folder, shard, config, {*wanted}), {*wanted}, (), 0, [])


def test_more_shards_than_images_and_one_after_the_other(trained, monkeypatch):
  config, folder = trained
  monkeypatch.setattr(weights, 'check', lambda *args: None)
  total = len(IMAGES) + 2
  for number in range(total):
    launch(config, folder, (number, total), 'certify', 'sandwich')
  own = folder / 'shards' / f'1-of-{total}'
  assert (own / 'checkpoints').is_symlink() and weights.finished_step(own) == 7
  assert [entry['idx'] for entry in records.read(own / 'certify.jsonl')[1:]] == [1]
  shards.merge(folder)
  # A stage more, and the folder of a shard as a workdir: it is still that of a shard.
  for number in range(total):
    place = shards.folder(folder, (number, total))
    launcher.run_stages(config, place, {'attack'}, (), 0, [])
  assert len(shards.merge(folder)) == 3
  assert workdir.stages(folder)['attack']['num_images'] == len(IMAGES)


def test_a_shard_is_of_a_training_that_is_there_and_stays(trained, monkeypatch):
  config, folder = trained
  monkeypatch.setattr(weights, 'check', lambda *args: None)
  for name, value, message in (('epsilon', 0.125, 'config.epsilon was'),
                               ('attack', {'name': 'autoattack'}, "attack.name is 'autoattack'")):
    with pytest.raises(UserError, match=message):
      shards.check(folder, (1, 4), {**config, name: value}, {'attack'})
  with pytest.raises(UserError, match='has no training'):
    shards.check(folder / 'nothing', (1, 4), config, {'certify'})
  assert not (folder / 'nothing').exists()
  launch(config, folder, (1, 4), 'certify')
  record = workdir.stages(folder)
  for status, message in (('running', 'not finished'), ('done', 'another training')):
    record['train'].update(status=status, last_step=9)
    workdir.write_json(folder / 'stages.json', record)
    with pytest.raises(UserError, match=message):
      shards.check(folder, (1, 4), config, {'certify'})


def test_a_shard_that_was_refused_can_begin(trained, monkeypatch):
  config, folder = trained

  def refuse(*args):
    raise UserError('damaged')

  monkeypatch.setattr(weights, 'check', refuse)
  with pytest.raises(UserError, match='damaged'):
    launch(config, folder, (0, 4), 'certify')
  monkeypatch.setattr(weights, 'check', lambda *args: None)
  launch(config, folder, (0, 4), 'certify')


@pytest.mark.parametrize(('words', 'message'), [
    (['--shard=4/4'], "I/N.*'4/4'"), (['--shard=1'], "I/N.*'1'"), (['--shard=-1/4'], 'I/N'),
    (['--shard=1/4', '--stages=train'], "'train'"), (['--shard=1/4', '--redo=train'], "'train'"),
    (['--shard=1/4', '--sweep'], '--sweep'), (['--shard=0-3/4'], "with --submit, I-J/N.*'0-3/4'"),
    (['--shard=2-4/4', '--submit=local'], "I-J/N.*'2-4/4'"),
    (['--shard=0-3/4', '--submit=pbs'], "slurm or local, got 'pbs'"),
    (['--submit=slurm'], '--sweep or --shard=I-J/N'),
    (['--shard=1/4', '--submit.partition=gpu'], 'but not --submit'),
    (['--shard=1/4', '--submit=slurm', '--submit.partition', 'gpu'], '--submit.partition=VALUE')])
def test_flags_that_do_not_go_together(words, message):
  with pytest.raises(UserError, match=message):
    flags.parse(['launch', *words])


@pytest.mark.parametrize(('flag', 'environment', 'expected'), [
    ('auto', {'SLURM_ARRAY_TASK_ID': '2', 'MIN': '0', 'MAX': '3', 'COUNT': '4'}, (2, 4)),
    ('auto/4', {'SLURM_ARRAY_TASK_ID': '3', 'MIN': '2', 'MAX': '3', 'COUNT': '2'}, (3, 4)),
    ('auto/4', {'JOB_COMPLETION_INDEX': '0'}, (0, 4)),
    ('1/4', {'SLURM_ARRAY_TASK_ID': '2'}, (1, 4)),
    ('auto', {}, 'SLURM_ARRAY_TASK_ID.*JOB_COMPLETION_INDEX'),
    ('auto/4', {}, 'SLURM_ARRAY_TASK_ID.*JOB_COMPLETION_INDEX'),
    ('auto', {'JOB_COMPLETION_INDEX': '0'}, 'auto/N.*JOB_COMPLETION_INDEX'),
    ('auto', {'SLURM_ARRAY_TASK_ID': '3', 'MIN': '2', 'MAX': '3', 'COUNT': '2'}, 'auto/N.*2-3'),
    ('auto/4', {'SLURM_ARRAY_TASK_ID': '4'}, 'SLURM_ARRAY_TASK_ID.*4'),
    ('auto/0', {'JOB_COMPLETION_INDEX': '0'}, 'JOB_COMPLETION_INDEX.*0'),
    ('auto/x', {'SLURM_ARRAY_TASK_ID': '2'}, "'auto/x'")])
def test_the_scheduler_says_which_shard_only_where_it_is_asked(flag, environment, expected,
                                                               monkeypatch):
  monkeypatch.delenv('SLURM_ARRAY_TASK_ID', raising=False)
  monkeypatch.delenv('JOB_COMPLETION_INDEX', raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name if '_' in name else f'SLURM_ARRAY_TASK_{name}', value)
  if isinstance(expected, str):
    with pytest.raises(UserError, match=expected):
      flags.parse(['launch', f'--shard={flag}'])
  else:
    assert flags.parse(['launch', f'--shard={flag}']).shard == expected
    assert flags.parse(['launch']).shard is None


def test_the_words_of_a_shards_job_are_those_of_its_command():
  given = flags.parse(['launch', '--shard=1-2/4', '--config=digits:pgd', '--redo', 'certify',
                       '--submit=slurm', '--submit.timeout_min=9', '--submit.partition=gpu',
                       '--config.seed=3', '--workdir=runs/x', '--stages=certify'])
  assert given.shards == [(1, 4), (2, 4)] and given.redo == ['certify']
  assert given.submit == ('slurm', {'timeout_min': 9, 'partition': 'gpu'})
  assert sorted(given.words) == ['--config.seed=3', '--config=digits:pgd', '--workdir=runs/x']


def test_a_shard_judges_and_no_more():
  given = flags.parse(['launch', '--shard=1/4'])
  assert given.shard == (1, 4) and given.stages == ['attack', 'certify', 'sandwich']
  assert 'bound' in shards.STAGES
