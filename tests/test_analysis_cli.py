"""The analysis command line: what is read, left out, refused; figures against brute force."""

import csv
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from robust_jax import analysis
from robust_jax.analysis import __main__ as command_line
from robust_jax.analysis import found_logs
from robust_jax.certification import certify as certify_images
from robust_jax.certification import log
from robust_jax.errors import UserError

TITLE = 'idx\tlabel\tpredict\tradius\tcorrect\ttime\n'
SETTINGS = {'name': 'fixed', 'sigma': 0.5, 'alpha': 0.001, 'n0': 10, 'n': 1000,
            'bound': 'one_vs_rest', 'dataset': 'digits', 'split': 'test', 'stride': 1,
            'num_images': 0, 'num_classes': 3, 'seed': 0, 'training_noise': 0.5}
DONE = {'certify': {'status': 'done'}}


def run(capsys, *words):
  """(status, standard output, lines of standard error) of a command."""
  try:
    command_line.main([str(word) for word in words])
    status = 0
  except SystemExit as error:
    status = error.code
  out, err = capsys.readouterr()
  return status, out, err.splitlines()


def refused(capsys, *words):
  """The message of a command that ends with one line and status 2."""
  status, out, err = run(capsys, *words)
  errors = [line for line in err if line.startswith('error: ')]
  assert (status, out, len(errors)) == (2, '', 1) and err[-1] == errors[0]
  return errors[0]


def rows_of(out):
  return list(csv.reader(out.splitlines()))


def write_table(path, radii, *, idx=None, labels=None, correct=True):
  """A published table of images with these radii, all of the right class or none."""
  path.parent.mkdir(parents=True, exist_ok=True)
  idx = range(len(radii)) if idx is None else idx
  labels = [1] * len(radii) if labels is None else labels
  path.write_text(TITLE + ''.join(
      f'{i}\t{label}\t{label if correct else label + 1}\t{radius}\t{int(correct)}\t0:00:02.5\n'
      for i, label, radius in zip(idx, labels, radii)))
  return path


def certificates(counts0, counts, settings):
  """What `certify` says of these votes."""
  given = iter([counts0, counts])
  return certify_images(
      jax.random.key(0), None, np.zeros((len(counts), 1)), sigma=settings['sigma'],
      n0=settings['n0'], n=settings['n'], alpha=settings['alpha'], bound=settings['bound'],
      count=lambda *_, **__: next(given))


def write_run(folder, *, num_images=40, idx=None, seed=0, stages=None, **settings):
  """A log as the certify stage writes it; in a workdir if stages are given."""
  settings = {**SETTINGS, **settings}
  rng = np.random.default_rng(seed)
  probabilities = rng.dirichlet([0.15, 0.15, 0.15], num_images)
  counts0 = rng.multinomial(settings['n0'], probabilities)
  counts = rng.multinomial(settings['n'], probabilities)
  counts[0, counts0[0].argmin()] = 0  # Draws that voted for no class.
  certificate = certificates(counts0, counts, settings)
  with log.open_for_append(folder / 'certify', settings, {'device': 'cpu'}) as writer:
    labels = np.where(np.arange(num_images) % 5, probabilities.argmax(axis=-1), 2)
    idx = np.arange(num_images) * settings['stride'] if idx is None else idx
    writer.write(log.records(idx, labels, certificate, 2.))
  if stages is not None:
    (folder / 'config.json').write_text('{}')
    (folder / 'stages.json').write_text(json.dumps(stages))
  return folder


# table


def test_table_of_our_logs_and_published_ones(tmp_path, capsys):
  ours = write_run(tmp_path / 'ours')
  other = write_table(tmp_path / 'noise_0.50' / 'sigma_0.25', [0.1, 0.6, 0.7, 0.9], correct=True)
  status, out, err = run(capsys, 'table', ours, other, '--radii=0,0.5,1', '--format=csv')
  title, first, second = rows_of(out)
  assert (status, err) == (0, [])
  assert title == [
      'log', 'sigma', 'images', 'r=0', 'r=0 low', 'r=0 high', 'r=0.5', 'r=0.5 low', 'r=0.5 high',
      'r=1', 'r=1 low', 'r=1 high', 'ACR', 'abstains', 'draws', 'seconds']
  truth = log.read(ours / 'certify.jsonl')
  votes = [json.loads(line) for line in (ours / 'certify.jsonl').read_text().splitlines()[1:]]
  expected = [str(ours / 'certify.jsonl'), '0.5', '40']
  for radius in (0, 0.5, 1):
    hits = sum(c and r >= radius for c, r in zip(truth.correct, truth.radius))
    interval = stats.binomtest(hits, 40).proportion_ci(method='exact')
    expected += [f'{100 * value:.1f}' for value in (hits / 40, interval.low, interval.high)]
  expected += [f'{sum(truth.correct * truth.radius) / 40:.3f}',
               f'{100 * sum(truth.predict == -1) / 40:.1f}',
               f'{sum(sum(vote["counts0"]) + sum(vote["counts"]) for vote in votes) / 40:.0f}', '2']
  assert first == expected
  assert second[:4] == [str(other), '0.25', '4', '100.0'] and second[-2:] == ['', '2.5']
  # For readers: the interval behind the figure, a dash for what is not known, short names.
  out = run(capsys, 'table', ours, other, '--radii=0.5')[1]
  assert f'Logs in {tmp_path}\n' in out
  line = next(line for line in out.splitlines() if line.startswith('noise_0.50/sigma_0.25'))
  assert line.split() == ['noise_0.50/sigma_0.25', '0.25', '4', '75.0', '(19.4–99.4)', '0.575',
                          '0.0', '–', '2.5']
  assert run(capsys, 'table', other, '--radii=0.5', '--decimals=0')[1].count('75 (19–99)') == 1


def test_every_format_and_the_width_of_a_terminal(tmp_path, capsys, monkeypatch):
  path = write_table(tmp_path / 'a_b.tsv', [0.5] * 4)
  out = run(capsys, 'table', path, '--format=markdown')[1]
  assert '| log ' in out and '| 100.0 (39.8–100.0) |' in out
  out = run(capsys, 'table', path, '--format=latex')[1]
  assert out.startswith('% Certified accuracy') and r'a\_b.tsv & – '.replace('–', '--') in out
  assert all(line.startswith(('%', '\\', 'log', '/')) or not line for line in out.splitlines())
  monkeypatch.setenv('COLUMNS', '60')
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
  monkeypatch.chdir(tmp_path)
  out = run(capsys, 'table', 'a_b.tsv')[1].partition('\n\n')[2]
  assert max(map(len, out.splitlines())) <= 60 and out.count('a_b.tsv') > 1


def test_default_radii():
  def radii(*largest, settings=None, most=8):
    return analysis.round_radii([
        log.Log(np.arange(2), np.zeros(2), np.zeros(2), np.array([value, 99.]),
                np.array([True, False]), np.ones(2), settings or {}, [])
        for value in largest], most)

  assert radii(0.95, 0.3) == [0, 0.25, 0.5, 0.75]
  assert radii(1.91) == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]
  assert radii(3.81) == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
  assert len(radii(3.81, most=16)) == 16
  assert radii(0.457) == [0, 0.1, 0.2, 0.3, 0.4]
  assert radii(300.) == [0, 50, 100, 150, 200, 250, 300]
  assert radii(0.) == [0]
  assert radii(0.5, 0.5, settings={'radii': [0.5, 0.25]}) == [0.25, 0.5]


# What is read


def test_a_folder_is_searched(tmp_path, capsys):
  run_folder = write_run(tmp_path / 'runs' / '000', stages=DONE)
  write_run(run_folder / 'previous' / 'x')
  write_run(tmp_path / 'runs' / 'plain')
  (tmp_path / 'runs' / 'begun').mkdir()
  for name in ('config.json', 'stages.json', 'metrics.jsonl'):
    (tmp_path / 'runs' / 'begun' / name).write_text('{}')
  write_table(tmp_path / 'b' / 'sigma_0.25', [0.1])
  write_table(tmp_path / '.hidden' / 'sigma_0.25', [0.1])
  (tmp_path / 'b' / 'bad').write_text(TITLE + '0\t1\t1\tx\t1\t0\n')
  (tmp_path / 'b' / 'notes.txt').write_bytes(bytes(range(256)))
  (tmp_path / 'b' / 'empty').write_text('')
  write_table(tmp_path / 'b' / 'attack.tsv', [0.1])  # No twin of a certification log.
  (tmp_path / 'b' / 'attack.jsonl').write_text('{"header":{"attack":{}}}\n')
  (tmp_path / 'b' / 'again').symlink_to(tmp_path)
  status, out, err = run(capsys, 'table', tmp_path, tmp_path / 'runs', '--format=csv')
  assert status == 0
  assert [Path(row[0]).relative_to(tmp_path).as_posix() for row in rows_of(out)[1:]] == [
      'b/attack.tsv', 'b/sigma_0.25', 'runs/000/certify.jsonl', 'runs/plain/certify.jsonl']
  begun = tmp_path / 'runs' / 'begun'
  bad, others = [line for line in err if f'{tmp_path}/runs: ' not in line]
  assert bad.startswith(f'skipped: {tmp_path}/b/bad:2: radius') and "'x'" in bad
  assert others == (
      f'skipped: {tmp_path}: b/attack.jsonl, b/empty, b/notes.txt, {begun} (a workdir without '
      'certificates): no certification log')
  # Named by itself, a table is read though it has a twin.
  out = run(capsys, 'table', run_folder / 'certify.tsv', '--format=csv')[1]
  assert rows_of(out)[1][0] == str(run_folder / 'certify.tsv')


def test_names_are_short_and_different():
  paths = [Path(f'/logs/net/{eps}/resnet/{sigma}/test/sigma_{sigma}')
           for eps in 'ab' for sigma in (1, 2)]
  assert found_logs.names(paths) == ('/logs/net', [
      f'{eps}/resnet/{sigma}/test/sigma_{sigma}' for eps in 'ab' for sigma in (1, 2)])
  assert found_logs.names([Path('runs/a/certify.jsonl'), Path('runs/b/certify.jsonl')]) == (
      'runs', ['a', 'b'])
  assert found_logs.names([Path('runs/a/certify.jsonl'), Path('runs/a/certify.tsv')]) == (
      'runs/a', ['certify.jsonl', 'certify.tsv'])
  assert found_logs.names([Path('runs/a/certify.jsonl')]) == ('', ['runs/a'])
  assert found_logs.names([Path('x/y'), Path('/z')]) == ('', ['x/y', '/z'])
  assert found_logs.names([Path('certify.jsonl'), Path('b.tsv')]) == (
      '', ['certify.jsonl', 'b.tsv'])


@pytest.mark.parametrize('path, train, sigma, noise', [
    ('cifar10/resnet110/noise_0.25/test/sigma_0.50', False, 0.5, 0.25),
    ('imagenet/resnet50/noise_1.00/train/sigma_1.00', True, 1., 1.),
    ('wrn/noise_.5/a.tsv', False, None, 0.5),
    ('train/test/cifar_10/certify_train.tsv', True, None, None),
    ('pretrained/trained_mnist/x.tsv', False, None, None),
])
def test_what_a_path_says(tmp_path, path, train, sigma, noise):
  path = write_table(tmp_path / path, [0.1])
  found = found_logs.load(path)
  assert (found.dataset, found.train_split, found.sigma, found.training_noise) == (
      None, train, sigma, noise)
  found = found_logs.load(path, {'dataset': 'cifar10', 'sigma': 0.75})
  assert (found.dataset, found.train_split, found.sigma) == ('cifar10', train, 0.75)


@pytest.mark.parametrize('stages', [DONE, {'certify': 3}, {'train': {}}, [], None])
@pytest.mark.parametrize('noise', [0.25, 0., None])
def test_what_a_log_says(tmp_path, stages, noise):
  folder = write_run(tmp_path / 'cifar10' / 'train' / 'noise_1', stages=stages, split='validation',
                     dataset='imagenet', training_noise=noise)
  found = found_logs.load(folder / 'certify.jsonl')
  assert (found.dataset, found.train_split, found.sigma, found.training_noise) == (
      'imagenet', False, 0.5, noise)
  assert found.remarks == []
  folder = write_run(tmp_path / 'x', stages=stages, split='train[:5%]', dataset='folder')
  found = found_logs.load(folder / 'certify.jsonl')
  assert (found.dataset, found.train_split) == (None, True)


def test_what_is_missing_is_said(tmp_path, capsys):
  gaps = write_table(tmp_path / 'gaps', [1.] * 6, idx=[160, 0, 20, 40, 80, 100])
  torn = write_table(tmp_path / 'torn', [1.] * 3)
  torn.write_text(torn.read_text()[:-10])
  short = write_table(tmp_path / 'short', [1.] * 10, idx=range(0, 1000, 100))
  whole = write_table(tmp_path / 'whole', [1.] * 100, idx=range(0, 10_000, 100))
  begun = write_run(tmp_path / 'begun', num_images=5, stages={'certify': {'status': 'running'}})
  status, out, err = run(capsys, 'table', gaps, torn, short, whole, begun, '--format=csv')
  assert status == 0 and [row[2] for row in rows_of(out)[1:]] == ['6', '2', '10', '100', '5']
  assert err == [
      f'warning: {gaps}: 3 images of the pattern 0, 20, 40, ... missing (idx 60, ...)',
      f'warning: {torn}: the last line is cut off, and dropped',
      f'warning: {begun}/certify.jsonl: the certification is not finished (5 images so far)',
      f'warning: {short}: 10 images, up to idx 900; other logs go up to 9900']


def test_gaps_against_a_loop(tmp_path):
  rng = np.random.default_rng(0)
  for trial in range(60):
    stride, known = int(rng.integers(1, 5)), bool(trial % 2)
    kept = np.union1d(np.flatnonzero(rng.random(40) < 0.9), [7, 8])
    idx = np.sort((kept if known else kept + 3) * stride)
    first = 0 if known else idx[0]
    missing = [i for i in range(first, idx[-1], stride) if i not in idx]
    folder = tmp_path / str(trial)
    lines = found_logs.load(
        write_run(folder, num_images=len(idx), idx=idx, stride=stride) / 'certify.jsonl' if known
        else write_table(folder / 'table', idx, idx=idx)).remarks
    if not missing:
      assert lines == []
    else:
      assert len(lines) == 1 and f': {len(missing)} image' in lines[0]
      assert f'pattern {first}, {first + stride}, ' in lines[0]
      assert f'(idx {missing[0]}{")" if len(missing) == 1 else ", ...)"}' in lines[0]
  for irregular in ([], [3], [0, 7, 9, 30, 31, 80]):
    assert found_logs.load(write_table(tmp_path / 'table', irregular, idx=irregular)).remarks == []


def test_votes_are_read_and_checked(tmp_path):
  path = write_run(tmp_path, num_images=3) / 'certify.jsonl'
  lines = path.read_text().splitlines()
  votes = log.read_votes(path)
  expected = [json.loads(line) for line in lines[1:]]
  np.testing.assert_array_equal(votes.counts0, [each['counts0'] for each in expected])
  np.testing.assert_array_equal(votes.counts, [each['counts'] for each in expected])
  assert log.read_votes(tmp_path / 'certify.tsv') is None
  for change, part in (({'counts': [1, 2]}, '[1, 2]'), ({'counts0': [1, -1, 0]}, '[1, -1, 0]'),
                       ({'counts': [1., 2, 3]}, '[1.0, 2, 3]'), ({'counts': 'many'}, 'many')):
    path.write_text('\n'.join([*lines[:3], json.dumps({**expected[2], **change})]) + '\n')
    with pytest.raises(UserError, match='certify.jsonl.*counts') as caught:
      log.read_votes(path)
    assert part in str(caught.value)
  del expected[1]['counts0']
  path.write_text('\n'.join([lines[0], *map(json.dumps, expected)]) + '\n')
  assert log.read_votes(path) is None
  path.write_text(lines[0] + '\n')
  assert log.read_votes(path) is None


def test_a_byte_order_mark_and_other_line_ends_are_read(tmp_path):
  path = write_table(tmp_path / 'table', [0.25, 0.5])
  path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes().replace(b'\n', b'\r\n'))
  assert log.read(path).radius.tolist() == [0.25, 0.5] and not log.is_cut_off(path)
  path.write_bytes(path.read_bytes()[:-2])  # Whole but for its end.
  assert len(log.read(path).idx) == 2 and not log.is_cut_off(path)
  path.write_bytes(path.read_bytes()[:-20])
  assert len(log.read(path).idx) == 1 and log.is_cut_off(path)


# Mistakes


def test_mistakes_are_one_line(tmp_path, capsys):
  good = write_table(tmp_path / 'good', [0.5, 0.5])
  empty = write_table(tmp_path / 'empty', [])
  bad, twice = tmp_path / 'bad', tmp_path / 'twice'
  bad.write_text(TITLE + '0\t1\t1\t0.5\t1\t0\n1\t1\t1\tfar\t1\t0\n')
  twice.write_text(TITLE + '4\t1\t1\t0.5\t1\t0\n' * 2)
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'notes').mkdir()
  (tmp_path / 'notes' / 'notes.txt').write_text('hello')
  for words, parts in (
      ([], ['COMMAND']),
      (['frob', good], ["'frob'", 'envelope']),
      (['table'], ['PATH']),
      (['table', tmp_path / 'absent'], ['absent: No such file']),
      (['table', bad], [f'{bad}:3: radius', "'far'"]),
      (['table', twice], [f'{twice}:3: idx 4 occurs more than once (first in line 2)']),
      (['table', tmp_path / 'folder'], ['folder must', 'empty']),
      (['table', tmp_path / 'notes'], ['notes must', 'notes.txt']),
      (['table', good, '--radii=0.5,x'], ["--radii", ">= 0", "'0.5,x'"]),
      (['table', good, '--radii=-1'], ["'-1'"]),
      (['table', good, '--radii=nan'], ["'nan'"]),
      (['table', good, '--radii='], ["''"]),
      (['table', good, '--format=html'], ["'html'", 'latex']),
      (['table', good, '--decimals=9'], ['9']),
      (['table', good, '--simultaneous'], ['--simultaneous', f'got {good}']),
      (['envelope', empty], [f'no log is left: {empty}: no images']),
      (['compare', good], ['two logs', str(good)]),
      (['compare', good, good], ['two logs']),
      (['compare', good, empty], ['two logs']),
      (['compare', good, write_table(tmp_path / 'far', [1.], idx=[9])], ['no image is in all 2']),
      (['plot', good], ['--output']),
      (['plot', good, '--output=x.jpg'], ['x.jpg', '.svg, .pdf or .png']),
      (['plot', good, f'--output={tmp_path}/none/x.png'], ['none/x.png', 'folder']),
      (['plot', empty, f'--output={tmp_path}/x.png'], ['no log is left'])):
    message = refused(capsys, *words)
    assert all(part in message for part in parts), message


def test_as_a_process(tmp_path):
  path = write_table(tmp_path / 'log', [0.5])
  command = [sys.executable, '-m', 'robust_jax.analysis']
  root = Path(__file__).parents[1]
  result = subprocess.run([*command, 'table', path, '--radii=a'], cwd=root, text=True,
                          capture_output=True, check=False)
  assert (result.returncode, result.stdout, result.stderr.count('\n')) == (2, '', 1)


@pytest.mark.parametrize('command', ['table', 'envelope', 'compare', 'plot', 'runs'])
def test_help_has_examples(capsys, command):
  status, out, _ = run(capsys, command, '--help')
  assert status == 0 and f'python -m robust_jax.analysis {command} ' in out.partition('examples')[2]
  assert '%%' not in out and max(map(len, out.splitlines())) <= 100
  assert f'  {command} ' in run(capsys, '--help')[1]


# envelope


def test_the_envelope_names_who_attains_it(tmp_path, capsys):
  steep = write_table(tmp_path / 'mnist' / 'noise_0.25' / 'test' / 'sigma_0.25', [0.4] * 4)
  flat = write_table(tmp_path / 'mnist' / 'noise_0.5' / 'test' / 'sigma_0.50', [0., 0., 2., 2.])
  twin = write_table(tmp_path / 'mnist' / 'noise_1' / 'test' / 'sigma_1', [2., 2., 1., 0.])
  words = ['envelope', tmp_path, '--radii=0.25,1.5,3']
  status, out, err = run(capsys, *words, '--format=csv')
  assert status == 0
  assert rows_of(out) == [['radius', 'certified', 'images', 'attained by'],
                          ['0.25', '100.0', '4', str(steep)],
                          ['1.5', '50.0', '4', f'{flat} (and 1 more)'], ['3', '0.0', '4', '']]
  # Left out, until asked for.
  train = write_table(tmp_path / 'mnist' / 'noise_1' / 'train' / 'sigma_1', [5.] * 4)
  other = write_table(tmp_path / 'mnist' / 'noise_1' / 'test' / 'sigma_0.25', [4.] * 4)
  write_table(tmp_path / 'mnist' / 'noise_1' / 'test' / 'sigma_0.12', [])
  status, again, err = run(capsys, *words, '--format=csv')
  assert again == out
  assert [line for line in err if line.startswith('left out')] == [
      'left out: noise_1/test/sigma_0.12: trained with noise 1, certified with 0.12 '
      '(--any-noise includes it)',
      'left out: noise_1/test/sigma_0.25: trained with noise 1, certified with 0.25 '
      '(--any-noise includes it)',
      'left out: noise_1/train/sigma_1: train split (--any-split includes it)']
  _, out, err = run(capsys, *words, '--format=csv', '--any-split', '--any-noise')
  assert [row[-1] for row in rows_of(out)[1:]] == [
      f'{steep} (and 2 more)', f'{other} (and 1 more)', f'{other} (and 1 more)']
  assert [line for line in err if line.startswith('left out')] == [
      'left out: noise_1/test/sigma_0.12: no images']
  assert rows_of(run(capsys, *words, '--format=csv', '--any-split')[1])[3][-1] == str(train)
  assert 'noise_0.5/' in run(capsys, *words)[1] and str(twin) not in run(capsys, *words)[1]


def test_workdirs_of_another_noise_or_split_are_left_out(tmp_path, capsys):
  write_run(tmp_path / 'a', stages=DONE)
  write_run(tmp_path / 'b', stages=DONE, seed=1, training_noise=0.)
  write_run(tmp_path / 'c', split='train[:5%]', seed=2)
  _, out, err = run(capsys, 'envelope', tmp_path, '--radii=0')
  assert out.splitlines()[-1].split()[-1] == str(tmp_path / 'a')
  assert err == ['left out: b: trained with noise 0, certified with 0.5 (--any-noise includes it)',
                 'left out: c: train split (--any-split includes it)']


def test_one_envelope_is_of_one_dataset(tmp_path, capsys):
  mnist = write_run(tmp_path / 'mnist', dataset='mnist') / 'certify.jsonl'
  cifar = write_run(tmp_path / 'cifar', dataset='cifar10') / 'certify.jsonl'
  plain = write_table(tmp_path / 'plain', [1., 1.], labels=[0, 0])
  message = refused(capsys, 'envelope', mnist, cifar)
  assert f'{mnist} of mnist, {cifar} of cifar10' in message
  message = refused(capsys, 'envelope', mnist, plain)
  assert f'has one label in {mnist} and another in {plain};' in message
  # One dataset may be numbered in several ways.
  status, _, err = run(capsys, 'envelope', mnist, plain, '--dataset=mnist')
  assert status == 0 and err[0].endswith('they number the images differently')
  for command in (['table'], ['plot', f'--output={tmp_path}/x.svg']):
    status, _, err = run(capsys, *command, mnist, cifar)
    assert status == 0
    assert f'warning: dataset differs: mnist in {mnist}, cifar10 in {cifar}' in err


# compare


def test_differences_are_paired(tmp_path, capsys):
  first, second = write_run(tmp_path / 'a'), write_run(tmp_path / 'b', seed=3)
  # Another order, and not all of the images.
  lines = (second / 'certify.jsonl').read_text().splitlines()
  (second / 'certify.jsonl').write_text('\n'.join([lines[0], *lines[:4:-1]]) + '\n')
  a, b = (log.read(folder / 'certify.jsonl') for folder in (first, second))
  a_by, b_by = ({i: (c, r) for i, c, r in zip(one.idx, one.correct, one.radius)} for one in (a, b))
  shared = sorted(a_by.keys() & b_by.keys())
  assert len(shared) == 36
  labels = {i: label for one in (a, b) for i, label in zip(one.idx, one.label)}
  for folder, by in ((first, a_by), (second, b_by)):  # The same labels in both.
    table = [f'{i}\t{labels[i]}\t{labels[i] if c else labels[i] + 1}\t{r}\t{int(c)}\t1'
             for i, (c, r) in by.items()]
    (folder / 'table').write_text(TITLE + '\n'.join(table) + '\n')
  words = ['compare', first / 'table', second / 'table', '--radii=0,0.5,9']
  status, out, err = run(capsys, *words, '--format=csv')
  assert status == 0
  assert 'warning: images that all logs have: 36; the intervals are meant for hundreds' in err
  title, one, other, difference = rows_of(out)
  assert title == ['log', 'images', 'figure', *(
      name + end for name in ('r=0', 'r=0.5', 'r=9', 'ACR') for end in ('', ' low', ' high'))]
  assert (one[1], other[1], difference[2]) == ('36 of 40', '36 of 36', 'minus the first')
  for place, radius in ((3, 0), (6, 0.5), (9, 9)):  # Nobody is certified at 9.
    x, y = (np.array([bool(by[i][0] and by[i][1] >= radius) for i in shared])
            for by in (a_by, b_by))
    assert (one[place], other[place]) == (f'{100 * x.mean():.1f}', f'{100 * y.mean():.1f}')
    assert difference[place:place + 3] == [
        f'{100 * value:+.1f}' for value in analysis.paired_difference(y, x)]
  x, y = (np.array([by[i][0] * by[i][1] for i in shared]) for by in (a_by, b_by))
  interval = stats.ttest_rel(y, x).confidence_interval(0.95)
  assert difference[12:] == [
      f'{value:+.3f}' for value in (np.mean(y - x), interval.low, interval.high)]
  out = run(capsys, *words)[1]
  assert 'that all 2 logs have: 36' in out
  assert '{} [{}, {}]'.format(*difference[3:6]) in out


def test_what_makes_certificates_differ_is_said(tmp_path, capsys):
  write_run(tmp_path / 'a')
  write_run(tmp_path / 'b', sigma=0.25, alpha=0.01, bound='runner_up')
  write_run(tmp_path / 'c', seed=4, batch_size=7, n=500)
  found, _ = found_logs.collect([tmp_path])
  a, b, c = (str(tmp_path / name / 'certify.jsonl') for name in 'abc')
  assert found_logs.differences(found) == [
      f'sigma differs: 0.5 in {a} and 1 more, 0.25 in {b}',
      f'alpha differs: 0.001 in {a} and 1 more, 0.01 in {b}',
      f'n differs: 1000 in {a} and 1 more, 500 in {c}',
      f'bound differs: "one_vs_rest" in {a} and 1 more, "runner_up" in {b}']
  tables = [found_logs.load(write_table(tmp_path / f'sigma_{sigma}', [0.1])) for sigma in (0.5, 1.)]
  assert found_logs.differences(tables) == [
      f'sigma differs: 0.5 in {tables[0].path}, 1.0 in {tables[1].path}']


def test_only_the_same_images_are_compared(tmp_path, capsys):
  a = write_table(tmp_path / 'a', [1.] * 3, labels=[1, 2, 3])
  b = write_table(tmp_path / 'b', [1.] * 3, labels=[1, 2, 4])
  c = write_table(tmp_path / 'train' / 'c', [1.] * 3, labels=[1, 2, 3])
  mnist = write_run(tmp_path / 'mnist', dataset='mnist') / 'certify.jsonl'
  cifar = write_run(tmp_path / 'cifar', dataset='cifar10') / 'certify.jsonl'
  assert f'idx 2 has one label in {a} and another in {b};' in refused(capsys, 'compare', a, b)
  assert f'{c} of a train split, {a} ' in refused(capsys, 'compare', a, c)
  assert f'{mnist} of mnist, {cifar} of cifar10' in refused(capsys, 'compare', mnist, cifar)


def test_certifiers_that_decide_other_radii_are_not_compared(tmp_path, capsys):
  fixed = write_run(tmp_path / 'fixed')
  grids = [write_run(tmp_path / name, name='sequential', radii=radii)
           for name, radii in (('one', [0., 0.25, 0.5]), ('two', [0., 0.5]), ('three', [0., 0.5]))]
  status, out, err = run(capsys, 'compare', fixed, grids[0], '--radii=0.5,0.75', '--format=csv')
  first = dict(zip(*(rows_of(out)[i] for i in (0, 3))))
  assert status == 0 and first['r=0.5'] and first['r=0.75'] == first['ACR'] == ''
  assert f'warning: name differs: "fixed" in {fixed}/certify.jsonl, "sequential" in ' in err[0]
  assert any(line.startswith('warning: radii differs: "any" in ') for line in err)
  assert (f'warning: {grids[0]}/certify.jsonl: the radii 0, 0.25, 0.5 were decided; 0.75: nothing '
          'is known') in err
  err = run(capsys, 'table', fixed, grids[0])[2]
  assert [line.split(':')[1] for line in err[:2]] == [' name differs', ' radii differs']
  err = run(capsys, 'plot', fixed, grids[0], f'--output={tmp_path}/x.svg')[2]
  assert [line.split(':')[1] for line in err] == [' name differs', ' radii differs']
  # One grid for all is what the table shows, and compares.
  _, out, err = run(capsys, 'compare', *grids[1:], '--format=csv')
  titles, *_, difference = rows_of(out)
  assert titles[3::3] == ['r=0', 'r=0.5', 'ACR'] and all(difference[3::3])
  assert not any('radii' in line for line in err)
  # The grid of one log says nothing of the two others.
  _, out, err = run(capsys, 'compare', fixed, write_run(tmp_path / 'again'), grids[0],
                    '--radii=0.25,0.4,0.75', '--format=csv')
  _, first, _, again, itself, grid = rows_of(out)
  assert all(again[3::3]) and all(first[3::3])
  assert [bool(text) for text in itself[3::3]] == [True, True, False, True]
  assert [bool(text) for text in grid[3::3]] == [True, False, False, False]
  # Those of one grid compare between its radii, and nothing is known beyond.
  _, out, _ = run(capsys, 'compare', *grids[1:], '--radii=0.25,0.5,0.75')
  assert re.sub(r' \[[^]]*]', '', out.splitlines()[-1]).split()[-4:] == [
      '+0.0', '+0.0', '–', '+0.000']
  assert out.splitlines()[-2].split()[-3:-1] == ['–', '≥']
  assert any(line.endswith('were decided; 0.4: at least the accuracy of the next larger one; 0.75: '
                           'nothing is known') for line in err)


def test_what_a_grid_does_not_say_is_left_open(tmp_path, capsys):
  fixed = write_run(tmp_path / 'fixed')
  grid = write_run(tmp_path / 'grid', name='sequential', radii=[0.25, 0.5])
  _, out, _ = run(capsys, 'table', fixed, grid, '--radii=0.5,0.75')
  plain, rounded = out.splitlines()[-2:]
  acr = f'{analysis.average_certified_radius(log.read(fixed / "certify.jsonl")):.3f}'
  assert f'  {acr}  ' in plain and f'≥ {acr}' in rounded
  assert [row.split()[5] for row in (plain, rounded)] == ['25.0', '–']
  titles, row = rows_of(run(capsys, 'table', grid, '--radii=0.5,0.75', '--format=csv')[1])
  assert row[titles.index('ACR')] == acr and row[titles.index('r=0.75')] == ''
  rows = rows_of(run(capsys, 'envelope', grid, '--radii=0.5,0.75', '--format=csv')[1])
  assert rows[1][1] and rows[2] == ['0.75', '', '', '']
  rows = rows_of(run(capsys, 'envelope', grid, fixed, '--radii=0.5,0.75', '--format=csv')[1])
  assert rows[2][1] and rows[2][3].startswith(str(fixed))


def test_every_setting_that_changes_certificates_is_named_beside_a_table(tmp_path, capsys):
  for name, changes in (('a', {}), ('b', {'noise': 'integer'}), ('c', {'n': 2000, 'sigma': 0.25})):
    write_run(tmp_path / name, **{'noise': 'gaussian', **changes})
  err = run(capsys, 'table', tmp_path)[2]
  assert [line.split(':')[1] for line in err] == [' n differs', ' noise differs']
  # What follows from sigma says nothing more.
  both = [write_run(tmp_path / 'd' / name, name='sequential', radii=[0.25], sigma=sigma,
                    cap_hits=[hits]) for name, sigma, hits in (('a', 0.25, 90), ('b', 0.5, 80))]
  assert run(capsys, 'table', *both)[2] == []


def test_a_log_without_a_grid_of_its_own(tmp_path, capsys):
  for radii in ([], None):
    folder = write_run(tmp_path / str(radii), radii=radii)
    assert run(capsys, 'table', folder)[0] == 0


def test_abstention_has_no_meaning_where_the_label_was_tested(tmp_path, capsys):
  write_run(tmp_path / 'a', name='sequential', choose='label', radii=[0., 0.5])
  write_run(tmp_path / 'b', name='sequential', choose='majority', radii=[0., 0.5])
  titles, label, majority = rows_of(run(capsys, 'table', tmp_path, '--format=csv')[1])
  assert label[titles.index('abstains')] == '' and majority[titles.index('abstains')]


# plot


def test_curves_are_drawn(tmp_path, capsys):
  rng = np.random.default_rng(0)
  paths = [write_table(tmp_path / f'<{i}>&.tsv', np.sort(rng.random(50)) * (i + 1))
           for i in range(3)]
  empty = write_table(tmp_path / 'empty', [])
  status, out, err = run(capsys, 'plot', *paths, empty, f'--output={tmp_path}/x.svg', '--intervals')
  assert (status, err) == (0, ['left out: empty: no images'])
  assert out == f'3 logs in {tmp_path}: {tmp_path}/x.svg\n'
  texts = {each.text for each in ElementTree.parse(tmp_path / 'x.svg').getroot().iter()}
  assert {'Certified accuracy', 'ℓ₂ radius', '<0>&.tsv', '2.5', '100%'} <= texts
  assert run(capsys, 'plot', *paths, f'--output={tmp_path}/x.PNG')[0] == 0
  with Image.open(tmp_path / 'x.PNG') as image:
    assert image.format == 'PNG' and image.width > 1400
  words = ('plot', *paths, '--x=p_A', f'--output={tmp_path}/y.svg')
  assert run(capsys, *words, '--sigma=0.5')[0] == 0
  texts = {each.text for each in ElementTree.parse(tmp_path / 'y.svg').getroot().iter()}
  assert {'Images with at least this p_A', '<0>&.tsv', '0.5', '1'} <= texts
  assert '--x=p_A needs its noise' in refused(capsys, *words)


# --simultaneous


@pytest.mark.parametrize('bound', ['one_vs_rest', 'runner_up'])
def test_simultaneous_certificates_are_those_of_alpha_by_images(tmp_path, bound):
  path = write_run(tmp_path, num_images=50, bound=bound) / 'certify.jsonl'
  one, votes = log.read(path), log.read_votes(path)
  result = analysis.simultaneous(one, votes, path=path)
  expected = certificates(votes.counts0, votes.counts,
                          {**SETTINGS, 'bound': bound, 'alpha': 0.001 / 50})
  np.testing.assert_array_equal(result.predict, expected.prediction)
  np.testing.assert_allclose(result.radius, expected.radius, rtol=1e-12)
  np.testing.assert_array_equal(result.correct, result.predict == one.label)
  assert result.settings['alpha'] == 0.001 / 50
  assert (result.radius <= one.radius).all() and result.radius.sum() < one.radius.sum()
  if bound == 'one_vs_rest':
    # The bound as its definition has it: P(Binomial(n, p) >= k) = alpha / 50.
    certain = result.radius > 0
    hits = votes.counts[np.arange(50), votes.counts0.argmax(axis=-1)][certain]
    p = stats.norm.cdf(result.radius[certain] / 0.5)
    np.testing.assert_allclose(stats.binom.sf(hits - 1, 1000, p), 0.001 / 50, rtol=1e-6)


def test_a_whole_log_is_true_as_often_as_it_says():
  rng = np.random.default_rng(0)
  settings = {**SETTINGS, 'alpha': 0.1, 'sigma': 1., 'n': 100}
  p, num_images, num_logs = 0.8, 20, 400
  truth, wrong = stats.norm.ppf(p), np.zeros(2)
  for _ in range(num_logs):
    hits = rng.binomial(100, p, num_images)
    votes = log.Votes(np.tile([10, 0], (num_images, 1)), np.stack([hits, 100 - hits], axis=1))
    certificate = certificates(*votes, settings)
    one = log.Log(
        np.arange(num_images), np.zeros(num_images, int), certificate.prediction,
        certificate.radius, certificate.prediction == 0, np.ones(num_images), settings, [])
    radii = [each.radius.max() for each in (one, analysis.simultaneous(one, votes))]
    wrong += [radius > truth for radius in radii]
  each, together = wrong / num_logs
  assert each > 0.5  # Some certificate of most logs.
  assert together <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / num_logs)


def test_simultaneous_integers_lose_once_an_image(tmp_path):
  """The draws of each image are exact but for noise_loss, however small its share of alpha."""
  lost = 0.0009 * 0.001
  path = write_run(tmp_path, noise='integer', noise_loss=lost) / 'certify.jsonl'
  one, votes = log.read(path), log.read_votes(path)
  # As `certify` has it for integer noise.
  sure = certificates(votes.counts0, votes.counts, {**SETTINGS, 'alpha': 0.00099})
  one = one._replace(predict=sure.prediction, radius=sure.radius)
  result = analysis.simultaneous(one, votes, path=path)
  found = certificates(votes.counts0, votes.counts, {**SETTINGS, 'alpha': 0.001 / 40 - lost})
  np.testing.assert_array_equal(result.predict, found.prediction)
  np.testing.assert_allclose(result.radius, found.radius, rtol=1e-12)
  for bad in (None, 0.001 / 40, -1.):
    other = one._replace(settings={**one.settings, 'noise_loss': bad})
    with pytest.raises(UserError, match='noise_loss'):
      analysis.simultaneous(other, votes, path=path)


def test_simultaneous_on_the_command_line(tmp_path, capsys):
  folder = write_run(tmp_path / 'a')
  plain = run(capsys, 'table', folder, '--format=csv')[1]
  status, out, _ = run(capsys, 'table', folder, '--format=csv', '--simultaneous')
  assert status == 0 and float(rows_of(out)[1][-4]) < float(rows_of(plain)[1][-4])
  assert 'no certificate of a log is false' in run(capsys, 'table', folder, '--simultaneous')[1]


@pytest.mark.parametrize('change, part', [
    ({'name': 'sequential'}, r"certifier.*'sequential'"), ({'name': None}, 'certifier.*None'),
    ({'n': 0}, 'n .*got 0'), ({'n0': 0}, 'n0 .*got 0'), ({'n': None}, 'n .*got None'),
    ({'n': 999}, 'idx .* 999 votes.* n, got '), ({'alpha': 1.5}, 'alpha .*got 1.5'),
    ({'sigma': 'x'}, "sigma .*got 'x'"), ({'bound': 'best'}, "bound .*got 'best'"),
    *(({field: value}, 'idx .*radius .*counts') for field, value in (
        ('alpha', 0.01), ('sigma', 0.25), ('n', 2000)))])
def test_simultaneous_is_refused_where_it_would_not_be_sound(tmp_path, capsys, change, part):
  path = write_run(tmp_path) / 'certify.jsonl'
  lines = path.read_text().splitlines()
  header = json.loads(lines[0])
  header['header']['settings'] |= change
  path.write_text('\n'.join([json.dumps(header), *lines[1:]]) + '\n')
  message = refused(capsys, 'table', tmp_path, '--simultaneous')
  assert re.match(f'error: {path}: .*{part}', message)
  assert run(capsys, 'table', tmp_path)[0] == 0


# Published logs


@pytest.mark.parametrize('folder, radii, row', [
    ('cohen2019/imagenet', np.arange(1, 8) / 2, [49, 37, 29, 19, 15, 12, 9]),
    ('cohen2019/cifar10', np.arange(1, 10) / 4, [60, 43, 32, 23, 17, 14, 12, 10, 8]),
    ('salman2019/imagenet', np.arange(1, 8) / 2, [56, 43, 37, 27, 25, 20, 16]),
])
def test_published_envelopes(test_data_dir, capsys, folder, radii, row):
  status, out, err = run(
      capsys, 'envelope', test_data_dir / 'reference_logs' / folder,
      '--radii=' + ','.join(map(str, radii)), '--decimals=0', '--format=csv')
  assert status == 0 and [line[1] for line in rows_of(out)[1:]] == list(map(str, row))
  left_out = [line for line in err if line.startswith('left out: ')]
  if folder == 'salman2019/imagenet':
    assert len(left_out) == 10 and all(line.endswith('no images') for line in left_out)
  else:
    assert sum('trained with noise' in line for line in left_out) == (2 if 'imagenet' in folder
                                                                      else 3)
    assert sum('train split' in line for line in left_out) == ('imagenet' in folder)


def test_published_logs_of_two_datasets(test_data_dir, capsys):
  message = refused(capsys, 'envelope', test_data_dir / 'reference_logs' / 'cohen2019')
  assert 'one label in' in message and message.count('sigma_') == 2
