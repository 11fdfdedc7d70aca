"""One run: its key figures and tables as text, its charts, and its page. No model is needed."""

import shlex
from typing import NamedTuple

import numpy as np

from robust_jax import analysis
from robust_jax.analysis import Table
from robust_jax.config.sections import flat
from robust_jax.report import charts, gallery, pages
from robust_jax.report.charts import Chart, Line
from robust_jax.report.contents import Contents
from robust_jax.report.pages import duration, percent

# The size of the charts that are a figure of a paper too.
LARGE = (520, 340)


class Figure(NamedTuple):
  """A key figure: what it is, its value, and what it was measured on."""

  name: str
  value: str
  note: str


def title(run: Contents) -> str:
  """Network, dataset and method in a phrase."""
  model = _name(run.record.get('model'), run.config.get('model'))
  dataset = _name(run.record.get('dataset'), run.config.get('data'))
  method = _name(run.config.get('method'))
  phrase = f'{model or "A network"} on {dataset or "unnamed data"}'
  return f'{phrase}, {method} training' if method and run.metrics['train'] else phrase


def key_figures(run: Contents) -> list[Figure]:
  """The headline of a run; what has not been measured is left out."""
  figures = [_clean(run)]
  log, attack = run.certified, run.attack
  if _has_images(log):
    radii = headline_radii(log, run.sigma)
    accuracies = analysis.certified_accuracy(log, radii)
    figures += [Figure(f'Certified accuracy, ℓ₂ radius {radius:g}', percent(accuracy),
                       _measured(accuracy, len(log.idx)))
                for radius, accuracy in zip(radii, accuracies)]
    abstains = '' if log.settings.get('choose') == 'label' else (
        f'abstains on {percent(analysis.abstention_rate(log))}')
    figures.append(Figure('Average certified radius', analysis.acr_text(log), abstains))
    if run.votes is not None:
      figures.append(Figure('Draws for a certificate', f'{analysis.mean_draws(run.votes):,.0f}',
                            f'mean an image; {duration(np.mean(log.time))} an image'))
  if _has_images(attack) and len(attack.epsilons):
    largest = int(np.argmax(attack.epsilons))
    accuracy = analysis.robust_accuracy(attack)[largest]
    smoothed = '; smoothed' if attack.header.get('smoothed') else ''
    figures.append(Figure(
        f'{attack_name(attack)} accuracy, {attack_norm(attack)} '
        f'ε = {pages.epsilon(attack.epsilons[largest])}',
        percent(accuracy), _measured(accuracy, len(attack.idx)) + smoothed))
  train = run.stages.get('train', {})
  if train.get('seconds') is not None and run.metrics['train']:
    speeds = [row['images_per_second'] for row in run.metrics['train']
              if row.get('images_per_second')]
    notes = [f'on {device_text(run)}'] if 'device' in run.record else []
    notes += [f'{np.median(speeds):,.0f} images/s'] if speeds else []
    for name, of in (('device_memory_mib', 'device '), ('memory_mib', '')):
      peaks = [row[name] for row in run.metrics['train'] if name in row]
      notes += [f'{max(peaks):,.0f} MiB of {of}memory'] if peaks else []
    figures.append(Figure('Training time', duration(train['seconds']), '; '.join(notes)))
  return [figure for figure in figures if figure]


def headline_radii(log, sigma) -> list[float]:
  """sigma and 2 sigma, or what was tested next below them, as far as anything is certified."""
  grid = _table_radii(log)
  step = sigma or grid[min(1, len(grid) - 1)]
  radii = [step, 2 * step]
  if analysis.decided_radii(log) is not None:
    radii = [max(each for each in grid if each <= radius + 1e-9) for radius in radii]
  return sorted({float(radius) for radius in radii if 0 < radius <= log.radius.max()})


def tables(run: Contents) -> dict[str, tuple[str, Table]]:
  """{file name: (caption, table)} of everything measured so far."""
  result = {'summary': ('Key figures', Table(
      ['figure', 'value', 'measured on'], key_figures(run)))}
  if _has_images(run.certified):
    radii = _table_radii(run.certified)
    accuracies = analysis.certified_accuracy(run.certified, radii)
    result['certified'] = ('Certified accuracy', _accuracy_table(
        ['ℓ₂ radius', 'certified accuracy (%)'], [f'{radius:.2f}' for radius in radii],
        accuracies, len(run.certified.idx)))
  if _has_images(run.attack):
    epsilons, accuracies = analysis.attack_curve(run.attack)
    result['attack'] = (f'Accuracy under {attack_name(run.attack)}', _accuracy_table(
        [f'{attack_norm(run.attack)} ε', 'robust accuracy (%)'], map(pages.epsilon, epsilons),
        accuracies, len(run.attack.idx)))
  if any(run.metrics.values()):
    result['training'] = ('Training', _training_table(run.metrics))
  if run.radii is not None:
    norm, (_, unit) = pages.norm(run.radii['norm']), _radii_unit(run)
    result['radii'] = (f'Quantiles of the {norm} radii{unit}, by class', _radii_table(run))
  return result


def figures(run: Contents) -> dict[str, Chart]:
  """{file name: chart} of what a paper shows: accuracies against radius, radii of training."""
  result, log, attack = {}, run.certified, run.attack
  lines = []
  if _has_images(attack):
    epsilons, accuracies = analysis.attack_curve(attack)
    scale, label = epsilon_axis([attack])
    lines = [Line(f'under {attack_name(attack)}', charts.ATTACK, epsilons * scale, accuracies,
                  analysis.accuracy_interval(accuracies, len(attack.idx)), marks=True)]
    if not bounds_certificates(run):
      result['attack'] = accuracy_chart('attack', f'Accuracy under {attack_name(attack)}', label,
                                        lines)
      lines = []
  if _has_images(log):
    (radii, accuracies), = charts.certified_curves([log])
    result['certified'] = accuracy_chart('certified', 'Accuracy', 'ℓ₂ radius of the perturbation', [
        Line('certified (95% band)', charts.CERTIFIED, radii, accuracies,
             analysis.accuracy_interval(accuracies, len(log.idx)), steps=True), *lines])
  if run.radii is not None:
    scale, unit = _radii_unit(run)
    counts, edges = np.histogram(scale * run.radii['radius'], bins=24)
    outline = np.concatenate([[0], counts, [0]])
    result['radii'] = Chart(
        'radii', 'Training images', f'{pages.norm(run.radii["norm"])} radius{unit}',
        [Line('', charts.TRAIN, np.append(edges, edges[-1]), outline,
              (np.zeros(len(outline)), outline), steps=True)], size=(520, 300))
  return result


def accuracy_chart(name, title, x_label, lines, **more) -> Chart:
  """A chart of accuracies in per cent against radii."""
  return Chart(name, title, x_label, lines, (0, 1), percent=True, size=LARGE, **more)


def bounds_certificates(run) -> bool:
  """Whether accuracy under attack is an upper bound of certified accuracy.

  Only an attack on the same classifier in the same norm is.
  """
  header = run.attack.header if _has_images(run.attack) else {}
  return bool(_has_images(run.certified) and header.get('smoothed')
              and header.get('attack', {}).get('norm') == 'l2'
              and header.get('sigma') == run.certified.settings.get('sigma'))


def page(run: Contents, tables, figures, figure_files) -> str:
  """The HTML of the page.

  Args:
    run: what the run has left.
    tables, figures: of the functions of these names.
    figure_files: {name of a figure: its files, as seen from the page}.
  """
  names = run.record.get('dataset', {}).get('class_names') or []
  values = {'cards': [], 'radii_cards': [], 'attack_name': '', 'attack_norm': '',
            'attack_details': '', 'other_images': False}
  if run.gallery is not None:
    values['cards'], values['magnification'] = gallery.adversarial(run.gallery, names)
    values |= {'gallery_norm': pages.norm(run.gallery['norm']),
               'gallery_epsilon': pages.epsilon(float(run.gallery['epsilon']))}
  if run.radii is not None:
    scale, unit = _radii_unit(run)
    values['radii_cards'] = gallery.by_radius(
        run.radii, names, lambda radius: f'{scale * radius:.3g}' + ('/255' if unit else ''))
  if _has_images(run.attack):
    details = {key: value for key, value in run.attack.header.get('attack', {}).items()
               if key not in ('name', 'norm') and value is not None}
    values |= {
        'attack_name': attack_name(run.attack), 'attack_norm': attack_norm(run.attack),
        'attack_details': pages.text(details),
        'other_images': run.attack.header.get('attack', {}).get('norm') == 'l2'
        and _has_images(run.certified)
        and not np.array_equal(np.sort(run.certified.idx), np.sort(run.attack.idx))}
  stages = [[name, stage.get('status'), *(pages.date(stage.get(at)) for at in (
      'started', 'finished')), duration(stage['seconds']) if stage.get('seconds') is not None
      else None] for name, stage in run.stages.items()]
  versions = [*run.record.get('versions', {}).items(), *(
      (key, run.record[key]) for key in ('platform', 'device', 'num_devices', 'flags')
      if run.record.get(key))]
  listed = lambda pairs: [[key, pages.text(value)] for key, value in pairs]
  return pages.render(
      'run.html', title=title(run), facts=_facts(run), run=run, headline=key_figures(run),
      tables=tables, figures=figures, figure_files=figure_files,
      comparable=bounds_certificates(run), training=_training_charts(run.metrics),
      thinned=len(run.metrics['train']) / charts.MAX_POINTS,
      command=f'python -m launch --workdir={shlex.quote(str(run.path))}',
      stages=Table(['stage', 'status', 'started', 'finished', 'time'], stages),
      versions=Table(['what', 'value'], listed(versions)),
      fields=Table(['field', 'value'], listed(flat(run.config).items())), **values)


def attack_name(attack) -> str:
  """The attack's name as a reader says it."""
  name = str(attack.header.get('attack', {}).get('name', 'attack'))
  return name.upper() if len(name) <= 4 else name


def attack_norm(attack) -> str:
  """The attack's norm; see `pages.norm`."""
  return pages.norm(attack.header.get('attack', {}).get('norm', ''))


def epsilon_axis(attacks) -> tuple[float, str]:
  """(scale, label) of an axis of epsilons: in 255ths where all are whole numbers of them."""
  label = f'{attack_norm(attacks[0])} ε'
  whole = all('/' in pages.epsilon(epsilon) for attack in attacks for epsilon in attack.epsilons)
  return (255., f'{label}, in 255ths') if whole else (1., label)


def device_text(run: Contents) -> str:
  """The devices of the run, as `8 × TPU v4`."""
  record = {**run.record, **run.stages.get('train', {})}
  device, number = record.get('device', 'unknown device'), record.get('num_devices', 1)
  return f'{number} × {device}' if number > 1 else str(device)


def _table_radii(log):
  """The grid of radii that was tested, or else round ones."""
  grid = analysis.decided_radii(log)
  return analysis.round_radii([log], most=16) if grid is None else grid


def _has_images(log):
  return log is not None and len(log.idx) > 0


def _name(*sections):
  for section in sections:
    name = section.get('name') if isinstance(section, dict) else section
    if name:
      return str(name)
  return ''


def _facts(run):
  dataset, model = run.record.get('dataset', {}), run.record.get('model', {})
  sigma = run.sigma
  facts = [f'smoothed with Gaussian noise σ = {sigma:g}'] if sigma else []
  if run.config and not sigma:
    facts.append('not smoothed')
  if 'num_params' in model:
    facts.append(f'{model["num_params"]:,} parameters')
  if 'num_classes' in dataset:
    facts.append(f'{dataset["num_classes"]} classes')
  if 'image_shape' in dataset:
    facts.append(f'images {"×".join(map(str, dataset["image_shape"]))}')
  if 'device' in run.record:
    facts.append(device_text(run))
  started = run.stages.get('train', {}).get('started') or run.record.get('started')
  return [*facts, f'started {pages.date(started)}'] if started else facts


def _clean(run):
  """Clean accuracy of the classifier that is deployed: the smoothed one where there is one."""
  name, log, attack = 'Clean accuracy', run.certified, run.attack
  if _has_images(log):
    accuracy = analysis.certified_accuracy(log, [0.0])[0]
    return Figure(name, percent(accuracy), _measured(accuracy, len(log.idx)) + '; smoothed')
  if _has_images(attack) and (attack.header.get('smoothed') or not run.tested):
    accuracy = analysis.clean_accuracy(attack)
    return Figure(name, percent(accuracy), _measured(accuracy, len(attack.idx)))
  if run.tested:
    note = 'test split, ' + (f'epoch {run.tested["epoch"]:.4g}' if 'epoch' in run.tested
                             else f'step {run.tested["step"]:,}')
    return Figure(name, percent(run.tested['accuracy']),
                  note + '; base classifier under noise' if run.sigma else note)
  return None


def _measured(accuracy, num_images):
  low, high = analysis.accuracy_interval(accuracy, num_images)
  return f'{num_images:,} images; 95% interval {100 * low:.1f}–{100 * high:.1f}'


def _accuracy_table(columns, names, accuracies, num_images):
  intervals = zip(*analysis.accuracy_interval(accuracies, num_images))
  return Table([*columns, '95% interval', 'images'], [
      [name, f'{100 * accuracy:.1f}', f'{100 * low:.1f}–{100 * high:.1f}',
       f'{round(accuracy * num_images)}/{num_images}']
      for name, accuracy, (low, high) in zip(names, accuracies, intervals)])


def _training_table(metrics):
  """Every test evaluation beside the training metrics last logged before it."""
  number = lambda row, name, spec: None if row.get(name) is None else format(row[name], spec)
  train, test = metrics['train'], metrics['test']
  rows = []
  for tested in test or train:
    trained = next((row for row in reversed(train) if row['step'] <= tested['step']), {})
    rows.append([tested['step'], number(tested, 'epoch', '.4g')] + [
        number(row, name, spec) for row in ([trained, tested] if test else [trained])
        for name, spec in (('loss', '.4f'), ('accuracy', '.2%'))])
  columns = ['step', 'epoch', 'train loss', 'train accuracy']
  return Table(columns + ['test loss', 'test accuracy'] if test else columns, rows)


def training_axis(rows) -> str:
  """What training is drawn against: the epoch, or the step where a row has none."""
  return 'epoch' if all('epoch' in row for row in rows) else 'step'


def training_curve(rows, name, x_name):
  """(x, y), [num_points] each, of the rows of metrics that have a value of this name."""
  kept = [row for row in rows if row.get(name) is not None]
  return np.array([row[x_name] for row in kept]), np.array([row[name] for row in kept])


def _training_charts(metrics):
  """A chart of every metric, loss and accuracy first."""
  rows = metrics['train'] + metrics['test']
  if not rows:
    return []
  names = {name for row in rows for name, value in row.items() if isinstance(value, int | float)
           and name not in ('split', 'step', 'epoch', 'images_per_second')}
  first = [name for name in ('loss', 'accuracy', 'learning_rate') if name in names]
  x_name = training_axis(rows)

  def line(split, name, style):
    x, y = charts.average(*training_curve(metrics[split], name, x_name))
    return Line(split, style, x, y, marks=split == 'test' and len(x) <= 30)

  return [Chart(f'training-{name}', name.replace('_', ' ').capitalize(), x_name,
                [line('train', name, charts.TRAIN), line('test', name, charts.TEST)],
                percent=name.endswith('accuracy')) for name in first + sorted(names - {*first})]


def _radii_unit(run):
  """(factor of the radii, its name): 255ths for small ones in linf, as papers have them."""
  small = str(run.radii['norm']) == 'linf' and run.radii['radius'].max() <= 32 / 255
  return (255., ', in 255ths') if small else (1., '')


def _radii_table(run):
  scale, unit = _radii_unit(run)
  radius, label = scale * run.radii['radius'], run.radii['label']
  names = run.record.get('dataset', {}).get('class_names') or []
  groups = [('all', np.ones(len(label), bool))] + [
      (gallery.class_name(k, names), label == k) for k in np.unique(label)]
  return Table(['class', 'images', 'at 0 (%)', '10%', '50%', '90%', '100%'], [
      [name, int(of.sum()), f'{100 * np.mean(radius[of] == 0):.1f}',
       *(f'{value:.{2 if unit else 3}f}'
         for value in np.quantile(radius[of], (0.1, 0.5, 0.9, 1)))]
      for name, of in groups])
