"""The report: both kinds of run, missing parts, hostile names, the same figures as analysis."""

import base64
import csv
import html.parser
import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from robust_jax import analysis, report
from robust_jax.certification import log
from robust_jax.data import imagenet
from robust_jax.errors import UserError
from robust_jax.report import charts, gallery, pages
from robust_jax.report.run import headline_radii

SECTIONS = ('robustness', 'gallery', 'training', 'soundness', 'provenance')


def write_workdir(path, *, smoothed, side, channels, num_images=300, num_epochs=20,
                  class_names=None, seed=0, better=0.0, dataset='digits', sections=()):
  """A made-up run whose curves look like real ones.

  `better` is added to every margin; `sections` replaces sections of the config.
  """
  rng = np.random.default_rng(seed)
  path.mkdir(parents=True, exist_ok=True)
  class_names = class_names or [f'{i}' for i in range(10)]
  norm, sigma = ('l2', 0.25) if smoothed else ('linf', 0.0)
  epsilons = [0.25, 0.5, 0.75, 1.0] if smoothed else [2 / 255, 4 / 255, 8 / 255]
  method = 'smoothadv' if smoothed else 'adversarial'
  attack = {'name': 'pgd', 'norm': norm, 'num_steps': 20, 'step_ratio': 2.5}
  config = {
      'seed': seed, 'epsilon': epsilons[-1], 'sigma': sigma, 'data': {'name': dataset},
      'model': {'name': 'lenet'}, 'attack': attack, 'train': {'batch_size': 64},
      'method': {'name': method, 'num_noise': 4, 'attack': {**attack, 'num_steps': 10}},
      'certify': {'name': 'fixed', 'n': 10_000, 'alpha': 0.001, 'sigma': None},
      **dict(sections)}
  record = {
      'command': 'python -m launch --config=configs/digits.py --workdir=runs/digits',
      'started': '2025-01-02T03:04:05+00:00', 'platform': 'Linux x86_64, 2 cores',
      'device': 'cpu', 'num_devices': 2, 'flags': '',
      'versions': {'robust_jax': '0.1.0', 'jax': '0.10.2'},
      'dataset': {'name': dataset, 'split': 'test', 'num_classes': 10,
                  'class_names': class_names, 'image_shape': [side, side, channels]},
      'model': {'name': 'lenet', 'num_params': 431_080}}
  names = ('train', 'attack', 'certify') if smoothed else ('train', 'attack')
  stages = {name: {'status': 'done', 'started': f'2025-01-02T0{hour}:04:05+00:00',
                   'finished': f'2025-01-02T0{hour}:51:07+00:00', 'seconds': 2822.4,
                   'config': config} for hour, name in enumerate(names, 3)}
  for name, value in (('config', config), ('run', record), ('stages', stages)):
    (path / f'{name}.json').write_text(json.dumps(value))

  lines, steps = [], 50
  for step in range(1, num_epochs * steps + 1):
    epoch = step / steps
    fit = 1 - 0.9 * np.exp(-epoch / 4)
    if step % 10 == 0:
      lines.append({'split': 'train', 'step': step, 'epoch': epoch,
                    'loss': 2.3 * (1.02 - fit) * rng.uniform(0.9, 1.1),
                    'accuracy': 0.1 + 0.85 * fit * rng.uniform(0.96, 1.0),
                    'learning_rate': 0.1 * 0.1 ** (3 * step // (num_epochs * steps + 1)),
                    'images_per_second': 900 * rng.uniform(0.9, 1.0), 'steps_per_second': 14.1,
                    'input_wait': 0.04})
    if step % steps == 0:
      lines.append({'split': 'test', 'step': step, 'epoch': epoch, 'loss': 2.3 * (1.1 - fit),
                    'accuracy': 0.1 + 0.8 * fit})
  (path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))

  # One latent margin an image decides both the certificate and what the attack achieves.
  labels = np.random.default_rng(0).integers(0, 10, num_images)
  margin = rng.normal(0.55 + better, 0.35, num_images) * epsilons[-1] / 0.9
  wrong = (labels + 1) % 10
  clean = np.where(margin > 0, labels, wrong)
  header = {'attack': attack, 'epsilons': epsilons, 'smoothed': smoothed, 'sigma': sigma, 'seed': 0}
  rows = [{'idx': i, 'label': int(labels[i]), 'clean': int(clean[i]),
           'adversarial': [int(labels[i] if margin[i] > epsilon else wrong[i])
                           for epsilon in epsilons]} for i in range(num_images)]
  (path / 'attack.jsonl').write_text(
      ''.join(json.dumps(row) + '\n' for row in [{'header': header}, *rows]))
  if smoothed:
    radius = np.clip(margin - rng.exponential(0.1, num_images), 0, 3.1 * sigma)
    predict = np.where(radius > 0, labels, np.where(rng.random(num_images) < 0.3, -1, wrong))
    settings = {'sigma': sigma, 'alpha': 0.001, 'n0': 100, 'n': config['certify']['n'],
                'num_images': 0}
    with log.open_for_append(path / 'certify', settings, {'device': 'cpu'}) as writer:
      writer.write([{'idx': i, 'label': labels[i], 'predict': predict[i], 'radius': radius[i],
                     'correct': int(predict[i] == labels[i]), 'time': 1.5,
                     'counts0': 100 * np.eye(10, dtype=int)[labels[i]],
                     'counts': 9_000 * np.eye(10, dtype=int)[labels[i]]}
                    for i in range(num_images)])

  y, x = np.mgrid[:side, :side] / side
  centre, number = rng.uniform(0.3, 0.7, (2, 8, 1, 1)), 8
  blob = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 0.06)[..., None]
  images = np.clip(blob * rng.uniform(0.5, 1, (number, 1, 1, channels)), 0, 1)
  change = rng.normal(size=images.shape)
  change = (epsilons[1] * np.sign(change) if norm == 'linf' else
            epsilons[1] * change / np.sqrt((change ** 2).sum((1, 2, 3), keepdims=True)))
  np.savez_compressed(
      path / 'gallery.npz', index=np.arange(number), images=images.astype(np.float32),
      adversarial=np.clip(images + change, 0, 1).astype(np.float32), labels=labels[:number],
      clean=clean[:number], predicted=np.where(np.arange(number) < 5, wrong[:number],
                                               labels[:number]),
      epsilon=epsilons[1], norm=norm)
  return path


KINDS = {
    'smoothed': {'smoothed': True, 'side': 8, 'channels': 1},
    'unsmoothed': {'smoothed': False, 'side': 32, 'channels': 3},
}


@pytest.fixture(scope='module', params=KINDS)
def workdir(request, tmp_path_factory):
  path = write_workdir(tmp_path_factory.mktemp(request.param), **KINDS[request.param])
  report.build(path)
  return path


@pytest.fixture
def no_files(monkeypatch):
  """Figures beside the pages are empty files, which takes less time."""
  monkeypatch.setattr(charts, 'render', lambda figure, kind: b'')


class Page(html.parser.HTMLParser):
  """Text, tags and addresses of a page; every tag must be closed in order."""

  VOID = {'meta', 'link', 'img', 'br', 'hr'}

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.addresses, self.ids, self.text = [], [], [], [], ''
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append((tag, attrs))
    self.addresses += [attrs[name] for name in ('src', 'href', 'data', 'srcset') if name in attrs]
    self.ids += [attrs['id']] if 'id' in attrs else []
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in self.VOID:
      self.open.pop()

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if 'style' not in self.open:
      self.text += data


def read_page(path):
  return Page((path / 'report.html').read_text(encoding='utf-8'))


def test_page_is_whole_and_asks_for_nothing_else(workdir):
  page = read_page(workdir)
  assert [one for one in page.ids if one in SECTIONS] == list(SECTIONS)
  assert len(page.ids) == len(set(page.ids))
  for address in page.addresses:
    assert address.startswith('data:') or address[1:] in page.ids or (
        workdir / address).is_file(), address
  source = (workdir / 'report.html').read_text()
  assert ('<b>certified' in source.lower()) == workdir.name.startswith('smoothed')
  assert not re.search(r'https?://|url\(|@import|<script', source)
  assert len(source) < 400_000
  for tag, attrs in page.tags:
    if tag == 'img':
      assert attrs['alt']
    if tag == 'svg':
      assert attrs['role'] == 'img' and ' against ' in attrs['aria-label']
  assert not re.search(r'\b(nan|None|inf)\b', page.text)
  assert not re.search(r'\$[a-z]', page.text)  # no placeholder of the template is left


def test_the_figures_are_those_of_analysis(workdir):
  page, summary = read_page(workdir).text, report.summary(workdir)
  attack = analysis.read_attack(workdir / 'attack.jsonl')
  expected = [f'{100 * analysis.robust_accuracy(attack)[-1]:.1f}%', '47 min']
  if workdir.name.startswith('smoothed'):
    one = log.read(workdir / 'certify.jsonl')
    expected += [f'{100 * value:.1f}%'
                 for value in analysis.certified_accuracy(one, [0.0, 0.25, 0.5])]
    expected += [f'{analysis.average_certified_radius(one):.3f}',
                 f'{100 * analysis.abstention_rate(one):.1f}%']
    expected.append('9,100')
    assert 'at most 0.3 are expected to be false' in page and 'not finished' not in page
  else:
    assert 'ertified' not in page and 'certificate' not in page and '--stages=' not in page
  for figure in expected:
    assert figure in page and figure in summary
  assert summary.startswith('lenet on digits, ') and '431,080' in page
  assert 'method.attack.num_steps' in page and 'configs/digits.py' in page


def test_tables_are_written_in_every_format(workdir):
  smoothed = workdir.name.startswith('smoothed')
  names = {'summary', 'attack', 'classes', 'training'} | ({'certified'} if smoothed else set())
  assert {path.name for path in (workdir / 'tables').iterdir()} == {
      f'{name}.{end}' for name in names for end in ('csv', 'md', 'tex')}
  assert {path.name for path in (workdir / 'figures').iterdir()} == {
      f'{name}.{end}' for name in (('certified', 'certified_radii', 'probability') if smoothed
                                   else ('attack',)) for end in ('svg', 'pdf')}
  attack = analysis.read_attack(workdir / 'attack.jsonl')
  lines = (workdir / 'tables' / 'attack.csv').read_text().splitlines()
  assert lines[0].startswith('ℓ₂ ε,' if smoothed else 'ℓ∞ ε,')
  assert lines[1].startswith(f'0,{100 * analysis.clean_accuracy(attack):.1f},')
  assert lines[-1].startswith('1,' if smoothed else '8/255,')


def test_the_page_does_not_change_when_built_again(workdir):
  before = (workdir / 'report.html').read_bytes()
  assert report.build(str(workdir)) == workdir / 'report.html'
  assert (workdir / 'report.html').read_bytes() == before


def test_every_scrolling_part_can_be_reached_by_keys(workdir):
  page = read_page(workdir)
  scrolling = [attrs for tag, attrs in page.tags
               if tag == 'pre' or 'scroll' in attrs.get('class', '').split()]
  assert len(scrolling) > 10 and all(attrs.get('tabindex') == '0' for attrs in scrolling)
  assert ('a', {'class': 'skip', 'href': '#main'}) in page.tags
  linked = {attrs['href'] for tag, attrs in page.tags if tag == 'a' and 'href' in attrs}
  assert {f'#{one}' for one in SECTIONS} <= linked


def test_classes_by_themselves_are_those_of_numpy(workdir):
  attack = analysis.read_attack(workdir / 'attack.jsonl')
  title, *rows = csv.reader((workdir / 'tables' / 'classes.csv').read_text().splitlines())
  robust = analysis.robust(attack)[:, -1]
  for k, row in enumerate(rows):
    of_class = attack.label == k
    cells = dict(zip(title, row))
    assert (cells['class'], cells['attacked images']) == (str(k), str(of_class.sum()))
    assert row[-1] == f'{100 * robust[of_class].mean():.1f}'
    if workdir.name.startswith('smoothed'):
      one = log.read(workdir / 'certify.jsonl')
      certified = one.correct & (one.radius >= 0.5)
      assert cells['certified 0.5 (%)'] == f'{100 * certified[one.label == k].mean():.1f}'
  assert len(rows) == 10 and '<details open><summary>By class' in (workdir /
                                                                 'report.html').read_text()


def test_only_settings_that_apply_are_shown(tmp_path, no_files):
  path = write_workdir(tmp_path, **KINDS['smoothed'], num_images=20, num_epochs=2)
  lines = (path / 'attack.jsonl').read_text().splitlines()
  header = json.loads(lines[0])
  header['header']['attack'] |= {'l1_top_k': 1, 'target': 'none', 'min_step_size': 0.,
                                 'step_size': None, 'smoothed_objective': 'smoothadv'}
  header['header'] |= {'num_noise': 16}
  (path / 'attack.jsonl').write_text('\n'.join([json.dumps(header), *lines[1:]]) + '\n')
  report.build(path)
  source = (path / 'report.html').read_text()
  settings = re.search(r'Settings of the attack.*?</details>', source, re.DOTALL).group(0)
  shown = re.findall(r'<tr><td class="v">(\w+)</td>', settings)
  assert shown == ['num_steps', 'step_ratio', 'smoothed_objective', 'sigma', 'num_noise']


def test_a_limit_of_the_draws_is_drawn_and_the_network_alone_is_shown(tmp_path, no_files):
  path = write_workdir(tmp_path, **KINDS['smoothed'], num_images=60, num_epochs=2, better=9.)
  report.build(path)
  assert 'limit of n' not in read_page(path).text  # No image has come to it.
  one = log.read(path / 'certify.jsonl')
  limit = analysis.largest_radius(one)
  assert limit == pytest.approx(0.25 * stats.norm.ppf(0.001 ** 1e-4))
  lines = [json.loads(line) for line in (path / 'certify.jsonl').read_text().splitlines()]
  for line in lines[1:]:
    line['radius'] = limit if line['radius'] > 0 else 0.
  (path / 'certify.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  stages = json.loads((path / 'stages.json').read_text())
  stages['certify']['network'] = {'accuracy': 0.9, 'num_images': 60}
  (path / 'stages.json').write_text(json.dumps(stages))
  report.build(path)
  text = read_page(path).text
  assert text.count('limit of n = 10,000') == 2  # Of the curve and the histogram.
  assert 'The network without noise90.0%60 images' in text
  assert not re.search('memory mib', text, re.IGNORECASE)


def test_a_checkpoint_chosen_by_the_test_split_is_told(tmp_path, no_files):
  path = write_workdir(tmp_path, **KINDS['unsmoothed'], num_images=20, num_epochs=2)
  config = json.loads((path / 'config.json').read_text())
  for validation, told in ((0., True), (0.1, False)):
    config |= {'checkpoint': 'best', 'data': {'name': 'digits', 'validation': validation}}
    (path / 'config.json').write_text(json.dumps(config))
    report.build(path)
    assert ('chosen by its accuracy on the test split' in read_page(path).text) == told


def test_an_attack_without_a_finite_gradient_is_told(tmp_path, no_files):
  path = write_workdir(tmp_path, **KINDS['unsmoothed'], num_images=20, num_epochs=2)
  report.build(path)
  assert 'not finite' not in read_page(path).text
  header, first, *lines = (path / 'attack.jsonl').read_text().splitlines()
  first = json.loads(first)
  first['undefined'] = [True] * len(first['adversarial'])
  (path / 'attack.jsonl').write_text('\n'.join([header, json.dumps(first), *lines]) + '\n')
  report.build(path)
  text = read_page(path).text
  assert 'On 1 of the images a gradient of the attack was not finite' in text
  assert 'no finite gradient on 1' in text


def test_every_missing_part_is_said(tmp_path, no_files):
  (tmp_path / 'stages.json').write_text('{}')
  page = report.build(tmp_path)
  text = read_page(tmp_path).text
  for stage in ('train', 'attack', 'certify'):
    assert f'python -m launch --workdir={tmp_path} --stages={stage}' in text
  assert 'nothing measured yet' in report.summary(tmp_path)
  whole = tmp_path / 'whole'
  write_workdir(whole, **KINDS['smoothed'], num_images=20, num_epochs=2)
  for path in sorted(whole.iterdir()):
    content = path.read_bytes()
    path.unlink()
    report.build(whole)
    assert [one for one in read_page(whole).ids if one in SECTIONS] == list(SECTIONS), path.name
    path.write_bytes(content)
  (whole / 'certify.jsonl').unlink()
  (whole / 'certify.tsv').unlink()
  report.build(whole)
  assert f'python -m launch --workdir={whole} --stages=certify' in read_page(whole).text
  assert page.name == 'report.html'


def test_what_check_found_is_told(tmp_path, no_files):
  write_workdir(tmp_path, **KINDS['unsmoothed'], num_images=20, num_epochs=2)
  lines = [dict(name='gradients', passed=False, text='images without a gradient', found='40.0%'),
           dict(name='noise', passed=True, text='accuracy above noise', found='-3.0%')]
  record = {'norm': 'linf', 'epsilon': 4 / 255, 'smoothed': False, 'checks': lines,
            'curves': {'epsilon': [[0., 2 / 255, 4 / 255, 1.], [0.9, 0.6, 0.4, 0.]],
                       'steps': [[0., 1., 2.], [0.9, 0.5, 0.4]], 'restarts': [[1.], [0.4]]},
            'images': [{'idx': 8, 'label': 3, 'robust': False, 'silent_success': 0.5}]}
  (tmp_path / 'check.json').write_text(json.dumps(record))
  report.build(tmp_path)
  text = read_page(tmp_path).text
  assert 'Can the attacks be trusted?' in text and 'images without a gradient' in text
  assert (tmp_path / 'tables' / 'checks.csv').read_text().splitlines()[1] == (
      '⚠,images without a gradient,40.0%')
  assert (tmp_path / 'tables' / 'indicators.csv').read_text().splitlines() == [
      'image,label,broken,silent success', '8,3,yes,0.5']
  (tmp_path / 'check.json').write_text('{"norm": "l2"}')
  with pytest.raises(UserError, match='check.json: no checks'):
    report.build(tmp_path)


def test_what_verify_found_is_told(tmp_path, no_files):
  write_workdir(tmp_path, **KINDS['smoothed'], num_images=20, num_epochs=2)
  record = {'finished': '2026-11-21T10:00:00+00:00', 'images': 20, 'drawn_again': 5, 'problems': {},
            'problems_in_table': {}}
  found = {'3': ['x'], '5': ['y']}
  for problems, words in (
      ({}, 'all are as logged'), ({'problems': found}, '2 are not as logged (verify.json)'),
      ({'problems_in_table': found}, '2 are not as in the table (verify.json)')):
    (tmp_path / 'verify.json').write_text(json.dumps({**record, **problems}))
    report.build(tmp_path)
    text = read_page(tmp_path).text
    assert 'On 2026-11-21 10:00 UTC 20 certificates' in text and '5 of them drawn for' in text
    assert words in text
  (tmp_path / 'verify.json').write_text('{"images": 3}')
  with pytest.raises(UserError, match='verify.json: no drawn_again'):
    report.build(tmp_path)


def test_unfinished_stages_and_empty_logs(tmp_path, no_files):
  path = write_workdir(tmp_path / 'run', **KINDS['smoothed'], num_images=20, num_epochs=2)
  stages = json.loads((path / 'stages.json').read_text())
  for stage in stages.values():
    stage['status'] = 'running'
    del stage['finished']
  (path / 'stages.json').write_text(json.dumps(stages))
  with open(path / 'metrics.jsonl', 'a') as file:
    file.write('{"split": "train", "st')  # a crash in mid-line
  report.build(path)
  text = read_page(path).text
  assert text.count('stage is not finished') == 3 and '20 images so far' in text
  for name in ('certify.jsonl', 'attack.jsonl'):
    first = (path / name).read_text().splitlines()[0]
    (path / name).write_text(first + '\n')
  report.build(path)
  assert 'No certificates yet' in read_page(path).text
  assert 'Not attacked yet' in read_page(path).text


def test_names_cannot_break_the_page(tmp_path):
  names = [f'<b>"{i}" & $title</b><script>alert(1)</script>' for i in range(10)]
  path = write_workdir(tmp_path / 'run', **KINDS['unsmoothed'], num_images=20, num_epochs=2,
                       class_names=names)
  record = json.loads((path / 'run.json').read_text())
  record['model']['name'] = record['command'] = '</title><img src=x onerror=alert(1)>'
  (path / 'run.json').write_text(json.dumps(record))
  report.build(path)
  page = read_page(path)
  assert not [attrs for tag, attrs in page.tags if tag == 'script' or 'onerror' in attrs]
  assert any(name in page.text for name in names) and '</title><img' in page.text


def test_user_mistakes_are_one_line(tmp_path):
  with pytest.raises(UserError, match='no such folder'):
    report.build(tmp_path / 'absent')
  for name, text in (('config.json', '{'), ('run.json', '[]'), ('gallery.npz', 'x'),
                     ('metrics.jsonl', '{"step": 1}\n'), ('attack.jsonl', '{}\n'),
                     ('certify.tsv', 'idx\n')):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=name) as caught:
      report.build(tmp_path)
    assert '\n' not in str(caught.value)
    (tmp_path / name).unlink()


# Charts.


def chart(*lines, **more):
  return charts.Chart('name', 'Title & <b>', 'x $y$', list(lines), **more)


def drawn_lines(one):
  return charts.draw(one).axes[0].get_lines()


def test_a_step_curve_never_lies_above_the_function():
  rng = np.random.default_rng(0)
  logs = [log.Log(np.arange(900), np.ones(900, int), np.ones(900, int), rng.random(900) * end,
                  rng.random(900) < 0.9, np.ones(900), settings, [])
          for end, settings in ((1., {}), (2., {}), (0.8, {'radii': [0.25, 0.5]}))]
  for most in (60, 10_000):
    for one, (radii, accuracies) in zip(logs, charts.certified_curves(logs, most)):
      np.testing.assert_array_equal(accuracies, analysis.certified_accuracy(one, radii))
      assert len(radii) <= most + 4 and radii[0] == 0
      # What is drawn between two radii is the value at the larger one.
      between = (radii[1:] + radii[:-1]) / 2
      assert (accuracies[1:] <= analysis.certified_accuracy(one, between)).all()
  assert (radii[-1], accuracies[-1] > 0) == (0.5, True)  # The grid's end.
  line, = drawn_lines(charts.certified_chart(logs[:1], ['one']))
  assert line.get_drawstyle() == 'steps-pre' and line.get_ydata()[-1] == 0
  _, line = drawn_lines(charts.certified_chart([logs[0], logs[2]], ['one', 'grid'], True))
  assert line.get_xdata()[-1] == 0.5


def test_charts_survive_odd_data():
  assert not chart().drawn
  assert not chart(charts.Line('a', 'c0', [0, 1], [float('nan'), float('inf')])).drawn
  for y in ([0.0], [5.0], [1e-9, 1e9], [3, 3], [-1.0, -2.0], [float('nan'), 1.0]):
    source = charts.inline_svg(chart(charts.Line('a', 'c0', range(len(y)), y)))
    Page(source)
    assert not re.search(r'\b(nan|inf)\b', source)
  x, y = charts.average(np.arange(1000), np.arange(1000) % 2)
  assert len(x) == charts.MAX_POINTS and abs(y.mean() - 0.5) < 0.02


def test_a_chart_on_a_page_has_its_colours_and_names():
  band, whiskers = ([0.1] * 3, [0.9] * 3), ([0.2] * 3, [0.8] * 3)
  one = chart(charts.Line('<i>&', 'c1', [0, 1, 2], [0.5] * 3, band),
              charts.Line('dots', 'c2 dash1', [0, 1, 2], [0.5, 0.6, 0.7], whiskers, marks=True),
              percent=True)
  source = charts.inline_svg(one)
  page = Page(source)
  assert not re.search(r'#[0-9a-f]{6}|https?:|url\(|font', source)
  assert {'var(--c1)', 'var(--c2)', 'var(--soft)', 'var(--rule)'} <= {*re.findall(
      r'var\(--\w+\)', source)}
  assert 'dots, x $y$ 1: 60.0%' in page.text and 'x $y$' in page.text and '100%' in page.text
  assert one.legend == [('<i>&', 'c1'), ('dots', 'c2 dash1')]
  assert charts.inline_svg(one) == source
  other = charts.inline_svg(one._replace(name='other'))
  assert not {*page.ids} & {*Page(other).ids}


@pytest.mark.parametrize('kind, start', [('svg', b'<?xml'), ('pdf', b'%PDF'), ('png', b'\x89PNG')])
def test_figures_are_files_and_always_the_same(kind, start):
  one = chart(charts.Line('_a $x$', 'c0', [0, 1], [0, 1]), charts.Line('', 'c1', [0, 1], [1, 0]))
  first, again = (charts.render(charts.draw(one), kind) for _ in range(2))
  assert first == again and first.startswith(start)
  if kind == 'svg':
    texts = {each.text.strip() for each in ElementTree.fromstring(first).iter() if each.text}
    assert {'Title & <b>', 'x $y$', '_a $x$', '0.5'} <= texts


def test_a_histogram_counts_everything_from_zero_on():
  values = np.random.default_rng(0).gamma(3, 0.1, 200)
  one = charts.histogram('name', 'Images', 'radius', values, 'c0')
  (line,) = one.lines
  edges = np.linspace(0, values.max(), 25)
  np.testing.assert_allclose(line.x[:-1], edges)
  np.testing.assert_array_equal(line.y[1:-1], np.histogram(values, edges)[0])
  assert line.y.sum() == 200 and line.interval[1].tolist() == line.y.tolist()
  few = charts.draw(charts.histogram('name', 'Images', 'radius', [0.5, 0.6], 'c0')).axes[0]
  assert all(tick % 1 == 0 for tick in few.get_yticks())
  assert charts.histogram('name', 'Images', 'radius', [0., 0.], 'c0').lines[0].y.sum() == 2


def test_an_axis_is_logarithmic_where_values_stay_small():
  steps = np.linspace(0, 1, 200)
  cosine, staircase = 0.05 * (1 + np.cos(np.pi * steps)) + 1e-7, 0.1 ** (1 + steps * 3 // 1)
  of = lambda y: chart(charts.Line('a', 'c0', steps, y))
  assert not of(cosine).logarithmic and of(staircase).logarithmic
  assert not of(np.append(np.ones(199), 1e-9)).logarithmic
  axes = charts.draw(of(staircase)).axes[0]
  assert 0.0005 < axes.get_ylim()[0] < 0.001
  spike = staircase.copy()
  spike[-1] = 1e-12  # Drawn on the axis.
  line, = drawn_lines(of(spike))
  assert line.get_ydata().min() == pytest.approx(axes.get_ylim()[0])


def test_the_distribution_of_p_a_is_never_above_itself():
  rng = np.random.default_rng(0)
  logs = [log.Log(np.arange(500), np.ones(500, int), np.ones(500, int), rng.gamma(2, 0.2, 500),
                  rng.random(500) < 0.9, np.ones(500), {'sigma': 0.25}, []) for _ in range(2)]
  for one, (p, shares) in zip(logs, charts.probability_curves(logs, [0.25, 0.5])):
    assert p[0] == 0.5 and shares[0] == one.correct.mean() and shares[-1] == 0
    assert (np.diff(p) > 0).all() and (np.diff(shares) <= 0).all()
  p, shares = charts.probability_curves(logs, [0.25, 0.5])[1]
  expected = np.where(logs[1].correct, stats.norm.cdf(logs[1].radius / 0.5), 0)
  np.testing.assert_array_equal(shares, (expected >= p[:, None]).mean(-1))


def test_many_lines_look_different():
  assert len({charts.style(i) for i in range(32)}) == 32 and charts.style(32) == charts.style(0)
  lines = [charts.Line(str(i), charts.style(i), [0, 1], [0, i]) for i in range(32)]
  looks = {(line.get_color(), line.get_linestyle(), str(line._dash_pattern))
           for line in drawn_lines(chart(*lines))}
  assert len(looks) == 32


# Pictures and words.


@pytest.mark.parametrize('largest', [8 / 255, 0.3, 1.0, 0.5, 0.01, 0.07])
def test_magnification_shows_all_and_is_round(largest):
  change = np.full((1, 2, 2, 1), -largest, np.float32)
  factor = gallery.magnification(change)
  assert factor >= 1 and float(f'{factor:.2g}') == factor
  if largest <= 0.5:
    assert 0.45 <= factor * largest <= 0.5001
  assert gallery.magnification(0 * change) == 1.0


def test_a_card_has_names_and_confidences():
  images = np.zeros((1, 8, 8, 1), np.float32)
  arrays = {'images': images, 'adversarial': images, 'index': [7], 'labels': [0], 'clean': [0],
            'predicted': [-1]}
  names = ['n01440764', 'n01443537']
  (image, change, attacked), = gallery.adversarial(arrays, names)[0]
  assert (image.name, change.name, attacked.name) == ('✓ tench', 'true: tench', '✗ abstains')
  assert image.note == attacked.note == ''  # Of a run of before there were any.
  arrays |= {'clean_confidence': [0.987], 'confidence': [0.5]}
  (image, _, attacked), = gallery.adversarial(arrays, names)[0]
  assert (image.note, attacked.note) == ('99%', '50%')
  found = imagenet.names()
  assert len(found) == len({*found.values()}) == 1000 and sorted(found) == [*found]
  assert found['n02012849'] == 'crane bird' and found['n15075141'] == 'toilet tissue'


def test_pictures_are_exact():
  """An image of few pixels has a square for each, so that no viewer blurs it."""
  for channels, side, factor in ((1, 5, 32), (3, 32, 5), (3, 200, 1)):
    levels = np.random.default_rng(0).integers(0, 256, (side, 4, channels))
    header, data = gallery.data_uri(levels / 255).split(',')
    assert header == 'data:image/png;base64'
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert image.shape[:2] == (factor * side, factor * 4)
    for row, column in ((0, 0), (factor - 1, 0), (0, factor - 1)):
      np.testing.assert_array_equal(
          image[row::factor, column::factor].reshape(levels.shape), levels)


@pytest.mark.parametrize('value, text', [
    (8 / 255, '8/255'), (0.3, '0.3'), (0.1, '0.1'), (1.0, '1'), (0.0, '0'), (127 / 256, '0.4961')])
def test_epsilons_as_people_write_them(value, text):
  assert pages.epsilon(value) == text


@pytest.mark.parametrize('seconds, text', [
    (0.5, '0.5 s'), (90, '90 s'), (2822, '47 min'), (7260, '2 h 01 min'), (90000, '25 h 00 min')])
def test_durations_as_people_say_them(seconds, text):
  assert pages.duration(seconds) == text


def test_a_grid_that_was_tested_is_what_is_shown():
  one = log.Log(np.arange(4), np.zeros(4, int), np.zeros(4, int), np.array([0., 0.1, 0.25, 0.5]),
                np.full(4, True), np.ones(4), {'radii': [0., 0.1, 0.25, 0.5], 'sigma': 0.3}, [])
  assert headline_radii(one, 0.3) == [0.25, 0.5] and headline_radii(one, 0.05) == [0.1]
