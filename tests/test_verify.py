"""Sequential certification as a stage: its log, interruptions, and its verification."""

import json
import os
import re
import shlex
import sys

import jax
import numpy as np
import pytest

from launch import flags
from robust_jax import stages, workdir
from robust_jax.certification import integer_noise, log
from robust_jax.config import experiment, sections
from robust_jax.errors import MismatchError, UserError
from robust_jax.stages.certify import certify
from robust_jax.stages.verify import verify

MODULE = """
import jax.numpy as jnp
import numpy as np
WEIGHTS = np.random.default_rng(SEED).normal(size=(64, 10)).astype(np.float32)
def logits(images):
  return (images.reshape(len(images), -1) - 0.5) @ WEIGHTS
"""
RULES = {
    'sequential': ['--config.certify.name=sequential', '--config.certify.radii=(0.1, 0.25, 0.4)',
                   '--config.certify.first_look=20'],
    'label': ['--config.certify.name=sequential', '--config.certify.choose=label',
              '--config.certify.radii=(0.1,)', '--config.certify.first_look=20'],
    'anytime': ['--config.certify.name=anytime', '--config.certify.first_look=20'],
    'fixed': [],
    'integer': ['--config.certify.noise=integer'],
    'sequential, integer': [
        '--config.certify.noise=integer', '--config.certify.name=sequential',
        '--config.certify.radii=(0.1, 0.25, 0.4)', '--config.certify.first_look=20'],
}


@pytest.fixture
def make(tmp_path, monkeypatch):
  """Builds a Run of a linear classifier on digits, from words of the command line."""
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'data'))

  def build(name, *words, seed=0, devices=2):
    (tmp_path / 'linear_classifier.py').write_text(MODULE.replace('SEED', str(seed)))
    sys.modules.pop('linear_classifier', None)
    # A tuple that is given twice would be one longer tuple.
    given = {word.partition('=')[0] for word in words}
    rule = [word for word in RULES[name] if word.partition('=')[0] not in given]
    words = ['--config.model.name=external', '--config.model.function=linear_classifier:logits',
             '--config.sigma=0.25', *rule, '--config.certify.n=400',
             '--config.certify.n0=30', '--config.certify.batch_size=100',
             '--config.certify_images.num_images=10', '--config.certify_images.images_per_call=4',
             *words]
    config = flags.parse(['launch', *words]).config
    return experiment.build(sections.resolve(config), jax.devices()[:devices])

  return build


def rows(folder):
  """The images of a log, but for the time."""
  return [{k: v for k, v in entry.items() if k != 'time'}
          for entry in log.read_entries(folder / 'certify.jsonl')]


ALL = pytest.mark.parametrize('name', list(RULES))
STOPPING = pytest.mark.parametrize('name', list(RULES)[:3])


@STOPPING
def test_a_log_says_all_that_decides_a_certificate(name, make, tmp_path):
  run = make(name)
  certify(run, tmp_path)
  found, settings = rows(tmp_path), log.read(tmp_path / 'certify.jsonl').settings
  assert sorted(row['idx'] for row in found) == list(range(10))
  assert settings['name'] == run.config['certify']['name'] and settings['sigma'] == 0.25
  assert settings['alpha_cap'] + settings['alpha_anytime'] == pytest.approx(settings['alpha'])
  if name == 'sequential':
    assert settings['radii'] == [0., 0.1, 0.25, 0.4] and len(settings['cap_hits']) == 4
  for row in found:
    assert row['draws'] == row['looks'][-1][0] == sum(row['counts'])
    assert row['counts'][row['chosen']] == row['looks'][-1][1]
    assert sum(row['counts0']) == (0 if name == 'label' else 30)
    assert row['chosen'] == (row['label'] if name == 'label' else np.argmax(row['counts0']))
    assert row['predict'] in (-1, row['chosen'])
  table = log.read(tmp_path / 'certify.tsv')
  np.testing.assert_array_equal(table.predict, [row['predict'] for row in found])
  votes = log.read_votes(tmp_path / 'certify.jsonl')
  np.testing.assert_array_equal(votes.counts.sum(axis=-1), [row['draws'] for row in found])
  assert not (tmp_path / 'certify.progress.json').exists()
  verify(run, tmp_path)


class Stop(Exception):
  pass


def interrupted_after(calls, monkeypatch):
  """Makes the votes fail after so many calls; they answer again when the context is undone."""
  from robust_jax import certification
  sharded, left = certification.sharded_count, [calls]

  def breaking(devices):
    count = sharded(devices)

    def broken(*args, **kwargs):
      if not left[0]:
        raise Stop
      left[0] -= 1
      return count(*args, **kwargs)

    return broken

  monkeypatch.setattr(certification, 'sharded_count', breaking)


@pytest.mark.parametrize('name', list(RULES)[:4])
def test_an_interrupted_log_ends_as_an_undisturbed_one(name, make, tmp_path, monkeypatch):
  whole = tmp_path / 'whole'
  runs, calls, most = [make(name, devices=1), make(name)], 0, 0
  certify(runs[1], whole)
  for stop in (1, 2, 7):
    folder, run = tmp_path / f'stop_{stop}', runs[stop % 2]
    while True:
      with monkeypatch.context() as patch:
        interrupted_after(stop, patch)
        try:
          certify(run, folder)
          break
        except Stop:
          calls += 1
          progress = folder / 'certify.progress.json'
          unfinished = json.loads(progress.read_text())['images'] if progress.exists() else []
          assert len(unfinished) <= 4
          most = max(most, len(unfinished))
    assert rows(folder) == rows(whole)
    assert not (folder / 'certify.progress.json').exists()
  assert calls > 2 and 1 <= most <= 4


def test_devices_and_pools_leave_the_same_rows(make, tmp_path):
  found = []
  for number, (devices, pool) in enumerate([(1, 4), (2, 1), (8, 10), (2, 50)]):
    folder = tmp_path / str(number)
    certify(make('sequential', f'--config.certify_images.images_per_call={pool}', devices=devices),
            folder)
    found.append(sorted(rows(folder), key=lambda row: row['idx']))
  assert all(each == found[0] for each in found)


def test_progress_is_of_the_same_log_only(make, tmp_path, monkeypatch):
  run = make('sequential')
  with monkeypatch.context() as patch, pytest.raises(Stop):
    interrupted_after(3, patch)
    certify(run, tmp_path)
  progress = tmp_path / 'certify.progress.json'
  saved = json.loads(progress.read_text())
  with log.open_for_append(tmp_path / 'certify', saved['settings'], {}) as writer:
    assert set(writer.begun) == {entry['idx'] for entry in saved['images']} != set()
  progress.write_text(json.dumps({**saved, 'settings': {}}))
  with log.open_for_append(tmp_path / 'certify', saved['settings'], {}) as writer:
    assert writer.begun == {}
  progress.write_text('{')
  with (pytest.raises(UserError, match='certify.progress.json cannot be read.*begun anew'),
        log.open_for_append(tmp_path / 'certify', saved['settings'], {})):
    pass
  assert progress.name in workdir.OUTPUTS['certify'], 'a redo leaves it behind'


# Verification.


def rewrite(folder, number, change):
  """Replaces what a line of the log holds by change(it); returns that."""
  path = folder / 'certify.jsonl'
  lines = path.read_text().splitlines()
  entry = change(json.loads(lines[number]))
  lines[number] = json.dumps(entry)
  path.write_text('\n'.join([*lines, '']))
  return entry


def tamper(folder, place, **changes):
  """Changes fields of the image at a place of the log, and makes the table anew."""
  entry = rewrite(folder, 1 + place, lambda entry: {
      **entry, **{name: change(entry[name]) for name, change in changes.items()}})
  (folder / 'certify.tsv').write_text(log.export(folder / 'certify.jsonl'))
  return entry


def set_header(folder, kind, **values):
  """Sets values of the header's settings or environment."""
  rewrite(folder, 0, lambda line: {'header': {
      **line['header'], kind: {**line['header'][kind], **values}}})


def finds(run, folder, message, capsys):
  """Verifies, which ends with this MismatchError; returns what was printed."""
  capsys.readouterr()
  with pytest.raises(MismatchError, match=message) as error:
    verify(run, folder)
  assert '\n' not in str(error.value) and error.value.exit_status not in (0, 1, 2, 3)
  return capsys.readouterr().out


def moved(counts):
  """The counts with a vote of the largest given to the next class."""
  most = int(np.argmax(counts))
  changed = list(counts)
  changed[most] -= 1
  changed[(most + 1) % len(counts)] += 1
  return changed


@ALL
def test_a_log_that_is_right(name, make, tmp_path, capsys):
  certify(make(name), tmp_path)
  draws = log.read_votes(tmp_path / 'certify.jsonl')
  line = capsys.readouterr().out.splitlines()[-1]
  assert re.fullmatch(
      rf'certify: 10 images, {np.mean(np.sum(draws, axis=(0, 2))):,.0f} draws and [0-9.e-]+ s an '
      r'image; [0-9.]+% right, average certified radius (≥ )?[0-9.]+', line)
  verify(make(name, '--config.certify_images.images_per_call=3', devices=1), tmp_path)
  assert '10 of 10 images drawn for again are identical' in capsys.readouterr().out
  verify(make(name, '--config.verify.sample=3'), tmp_path)
  printed = capsys.readouterr().out
  assert '3 of 3 images drawn for again are identical' in printed
  assert '10 of 10 agree with their own counts, 10 with the table' in printed
  record = json.loads((tmp_path / 'verify.json').read_text())
  assert (record['images'], record['drawn_again'], record['problems']) == (10, 3, {})


def test_other_flags_are_named_but_for_the_number_of_devices(make, tmp_path, capsys):
  run = make('fixed')
  certify(run, tmp_path)
  flags_now = [flag for flag in os.environ['XLA_FLAGS'].split() if 'device_count' not in flag]
  for other, is_said in (('--xla_force_host_platform_device_count=7', False),
                      ('--xla_cpu_enable_fast_math=true', True)):
    set_header(tmp_path, 'environment', flags=' '.join([*flags_now, other]))
    verify(run, tmp_path)
    assert ('(the log was made with other flags)' in capsys.readouterr().out) == is_said


def test_a_log_without_the_noise_of_the_training(make, tmp_path, capsys):
  run = make('fixed')
  certify(run, tmp_path)
  path = tmp_path / 'certify.jsonl'
  lines = path.read_text().splitlines(keepends=True)
  header = json.loads(lines[0])
  del header['header']['settings']['training_noise']
  path.write_text(''.join([json.dumps(header) + '\n', *lines[1:-2]]))
  certify(run, tmp_path)
  verify(run, tmp_path)
  assert '10 of 10 images drawn for again are identical' in capsys.readouterr().out


def test_a_sample_is_taken_once(make, tmp_path):
  run = make('fixed', '--config.verify.sample=3')
  assert run.verify.sample == 3
  words = ['--stages=verify', '--config.certify.radii=(0.1, 0.25)']
  workdir.describe(run, tmp_path, words)
  assert shlex.split(json.loads((tmp_path / 'run.json').read_text())['command'])[3:] == words
  assert sections.saved_config(tmp_path).verify.sample == 0


@ALL
def test_what_is_wrong_is_named(name, make, tmp_path, capsys):
  run = make(name)
  certify(run, tmp_path)
  whole = (tmp_path / 'certify.jsonl').read_text()
  other = lambda hits: hits - 1 if hits else 1
  stops = run.certify.stops_early
  cases = [
      ({'radius': lambda r: r + 0.01}, r'radius [\d.e-]+ is logged; [\d.e-]+ follows from its'),
      ({'p_lower': lambda p: p + 0.001}, 'p_lower .* is logged; .* follows'),
      ({'counts': moved}, 'counts: |its counts '),
  ]
  if stops:
    cases += [
        ({'looks': lambda looks: [[20, other(looks[0][1])], *looks[1:]]}, 'look 1: '),
        ({'looks': lambda looks: [*looks[:-1], [looks[-1][0], other(looks[-1][1])]]},
         'its counts .* are not those of its last look'),
        ({'looks': lambda looks: looks[:-1]}, 'its looks are after|it has no counts'),
        ({'looks': lambda looks: []}, 'it has no counts of a certificate'),
    ]
  for changes, message in cases:
    (tmp_path / 'certify.jsonl').write_text(whole)
    entry = tamper(tmp_path, 4, **changes)
    lines = finds(run, tmp_path, '1 of 10 images are not as logged', capsys).splitlines()
    assert any(re.match(f'image {entry["idx"]}: (?:{message})', line) for line in lines), lines
    assert all(line.startswith((f'image {entry["idx"]}: ', 'verify: 9 of 10')) for line in lines)


def test_images_and_labels_are_those_of_the_dataset(make, tmp_path, capsys):
  run = make('fixed', '--config.verify.sample=1')
  certify(run, tmp_path)
  path, table = tmp_path / 'certify.jsonl', tmp_path / 'certify.tsv'
  whole, rows_of_table = path.read_text(), table.read_text()
  # A label that log and table have made right, of an image that is not drawn for again.
  wrong = next(place for place, row in enumerate(rows(tmp_path)) if 0 < place < 9
               and row['predict'] not in (row['label'], -1))
  entry = tamper(tmp_path, wrong, label=lambda _: rows(tmp_path)[wrong]['predict'],
                 correct=lambda _: 1)
  assert (f'image {entry["idx"]}: label: {entry["label"]} is logged; the dataset has '
          in finds(run, tmp_path, '1 of 10 images are not as logged', capsys))
  path.write_text(whole)
  table.write_text(rows_of_table + '99\t1\t1\t0.5\t1\t0:00:01\n')
  assert 'image 99: it is in certify.tsv alone' in finds(
      run, tmp_path, 'certify.tsv: 1 of 10 images are not as in', capsys)
  # Images that are left out: a log in the making, or one that claims to be whole.
  path.write_text(''.join(whole.splitlines(keepends=True)[:8]))
  tamper(tmp_path, 0)
  capsys.readouterr()
  verify(run, tmp_path)
  assert 'verify: 3 of 10 images are not certified yet' in capsys.readouterr().out
  (tmp_path / 'stages.json').write_text(json.dumps({'certify': {'status': 'done'}}))
  assert 'it is missing, and the certify stage is done' in finds(
      run, tmp_path, '3 of 7 images are not as logged', capsys)
  foreign = make('fixed', '--config.certify_images.num_images=5')
  path.write_text(whole)
  set_header(tmp_path, 'settings', num_images=5)
  tamper(tmp_path, 0)
  assert 'it is not among the images of config.certify_images' in finds(
      foreign, tmp_path, '5 of 10 images', capsys)


def test_an_image_off_the_grid_is_named(make, tmp_path, monkeypatch):
  run = make('sequential, integer')
  monkeypatch.setattr(integer_noise, 'check_images',
                      lambda images: (_ for _ in ()).throw(ValueError('images have the pixel 0.3')))
  with pytest.raises(UserError, match="test image 0, config.certify.noise='integer': images have"):
    certify(run, tmp_path)


def test_an_image_that_was_drawn_for_too_long(make, tmp_path, capsys):
  run = make('sequential')
  certify(run, tmp_path)
  patient = make('sequential', '--config.certify.futility=1e-9')
  certify(patient, tmp_path / 'patient')
  found = [{row['idx']: row for row in rows(folder)} for folder in (tmp_path, tmp_path / 'patient')]
  longer = next(idx for idx in found[0] if found[0][idx]['draws'] < found[1][idx]['draws'])
  place = [row['idx'] for row in rows(tmp_path)].index(longer)
  tamper(tmp_path, place, **{name: lambda _, name=name: found[1][longer][name]
                             for name in ('looks', 'draws', 'counts')})
  assert (f'image {longer}: its drawing ended after {found[1][longer]["draws"]} draws; the rule '
          f'ends it after {found[0][longer]["draws"]}') in finds(
              run, tmp_path, '1 of 10 images', capsys)


def test_counts_and_decision_that_agree_but_are_not_drawn(make, tmp_path, capsys):
  run = make('fixed')
  certify(run, tmp_path)
  other = make('fixed', '--config.seed=1')
  certify(other, tmp_path / 'other')
  rewrite(tmp_path, 3, lambda _: log.read_entries(tmp_path / 'other' / 'certify.jsonl')[2])
  assert re.search(r'image 2: counts\d?: \[.*\] is logged, \[.*\] now',
                   finds(run, tmp_path, '1 of 10 images', capsys))


def test_the_table_is_verified_too(make, tmp_path, capsys):
  run = make('sequential')
  certify(run, tmp_path)
  table = tmp_path / 'certify.tsv'
  lines = table.read_text().splitlines(keepends=True)
  radius = lines[3].split('\t')[3]
  table.write_text(''.join([*lines[:3], lines[3].replace(radius, '1.50000'), *lines[4:]]))
  printed = finds(run, tmp_path, 'certify.tsv: 1 of 10 images are not as in certify.json', capsys)
  assert 'certify.tsv has another line: ' in printed
  assert '10 of 10 agree with their own counts, 9 with the table' in printed
  record = json.loads((tmp_path / 'verify.json').read_text())
  assert record['problems'] == {} and list(record['problems_in_table']) == ['3']
  # A last line that was cut off, as a crash leaves it, is no line.
  table.write_text(''.join(lines[:-1]) + '\0\0')
  verify(run, tmp_path)


def test_other_parameters_and_settings_are_one_line(make, tmp_path):
  certify(make('sequential'), tmp_path)
  for words, seed, message in (
      ([], 1, 'the log is of other parameters: classifier_sha256'),
      (['--config.seed=3'], 0, 'seed is 3 but 0 in the log'),
      (['--config.certify.alpha=0.01'], 0, 'alpha is 0.01 but 0.001 in the log')):
    with pytest.raises(UserError, match=message) as error:
      verify(make('sequential', *words, seed=seed), tmp_path)
    assert '\n' not in str(error.value)
  with pytest.raises(UserError, match='has no certify.jsonl'):
    verify(make('sequential'), tmp_path / 'nothing')


# Configs and the launcher.


@pytest.mark.parametrize(('name', 'word', 'message'), [
    ('sequential', 'certify.n0=0', 'certify.n0 .*, got 0'),
    ('sequential', 'certify.n=0', 'certify.n .* got 0'),
    ('sequential', 'certify.n=5', 'certify.n .* 11 .*, got 5'),
    ('sequential', 'certify.alpha=1.0', r'certify.alpha .*\(0, 1\), got 1.0'),
    ('sequential', 'certify.radii=(0.1, 3.0)', 'certify.radii .* than 0.[0-9]+.*, got 3.0'),
    ('sequential', 'certify.radii=(0.1, 0.1)', 'certify.radii .*, got 0.1 more than once'),
    ('sequential', 'certify.radii=("a",)', "certify.radii must be a tuple .*'a'"),
    ('sequential', 'certify.radii=(-0.5,)', 'certify.radii .*-0.5'),
    ('sequential', 'certify.choose=best', "certify.choose .* majority, label, got 'best'"),
    ('sequential', 'certify.look_growth=0.5', 'certify.look_growth .* got 0.5'),
    ('sequential', 'certify_images.images_per_call=100_000_000',
     'certify and config.certify_images: .*100000000 images'),
    ('integer', 'certify.alpha=1e-12', 'certify.*alpha .*, got 1e-12'),
    ('integer', 'sigma=600.', 'certify.*sigma .* 446.*, got 600.0'),
])
def test_mistakes_are_found_before_anything_runs(name, word, message, make):
  with pytest.raises(UserError, match=f'config.{message}') as error:
    make(name, f'--config.{word}')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['mnist', 'cifar10', 'imagenet'])
def test_configs_of_certification(name):
  words = [f'--config=configs/{name}.py:certify', '--stages=certify,verify,report']
  parsed = flags.parse(['launch', *words])
  assert parsed.stages == ['certify', 'verify', 'report']
  config = sections.resolve(parsed.config)
  assert config['certify']['name'] == 'sequential'
  rule = experiment.certifier(config)
  assert rule.grid[-1] in (1.5, 1.75)


def test_verification_is_no_part_of_a_run_unless_asked_for():
  assert 'verify' not in flags.parse(['launch']).stages and 'verify' not in stages.KEPT
