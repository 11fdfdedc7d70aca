"""One run: its key figures and tables as text, its charts, and its page. No model is needed."""

import shlex
from typing import NamedTuple

import numpy as np

from robust_jax import analysis
from robust_jax.analysis import Table
from robust_jax.config.sections import flat
from robust_jax.report import bounded, charts, gallery, pages
from robust_jax.report.charts import Chart, Line
from robust_jax.report.contents import Contents
from robust_jax.report.pages import duration, percent
from robust_jax.workdir.monitoring import MEASURED

# Metrics that are no curve of training: the key figures have them.
_NOT_DRAWN = ('split', 'step', 'epoch', 'skipped_steps', *MEASURED)
# Images of the sandwich that the page lists, and that its chart shows.
_LISTED, _SCATTERED = 300, 1000
# The size of the charts that are a figure of a paper too.
LARGE, SMALL = (520, 340), (520, 300)


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
  figures = [_clean(run), _without_noise(run)]
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
  if _has_images(run.sandwich):
    ratios, crossed = (of(run.sandwich) for of in (analysis.radius_ratios, analysis.crossings))
    if len(ratios):
      figures.append(Figure(
          'Adversarial / certified ℓ₂ radius', f'{np.median(ratios):.2f}',
          f'median of {len(ratios):,} images; {crossed.sum():,} attacks within a certificate'))
  if _has_images(attack) and len(attack.epsilons):
    shown = _shown_radius(run)
    accuracy = analysis.robust_accuracy(attack)[shown]
    smoothed = '; smoothed' if attack.header.get('smoothed') else ''
    unsure = analysis.robust_accuracy(attack, confirmed=True)[shown] - accuracy
    if smoothed and unsure > 0:
      smoothed += f'; {percent(unsure)} undecided count as wrong'
    undefined = analysis.undefined_images(attack)
    doubt = f'; no finite gradient on {undefined:,}' if undefined else ''
    trained = _trained_against(run)
    if trained and not np.isclose(attack.epsilons[shown], trained, rtol=1e-3):
      doubt += f'; trained against ε = {pages.epsilon(trained)}'
    figures.append(Figure(
        f'{attack_name(attack)} accuracy, {attack_norm(attack)} '.rstrip() +
        f' ε = {pages.epsilon(attack.epsilons[shown])}',
        percent(accuracy), _measured(accuracy, len(attack.idx)) + smoothed + doubt))
  if _has_images(run.bounded):
    log = run.bounded
    j = bounded.shown_radius(log, run.config)
    accuracy = log.verified[:, j].mean()
    figures.append(Figure(
        f"Verified accuracy, {pages.norm(log.header['norm'])} ε = {pages.epsilon(log.epsilons[j])}",
        percent(accuracy), f'{_measured(accuracy, len(log.idx))}; {bounded.method(log)}; '
        f"{percent((log.verdict[:, j] != 'falsified').mean())} withstand its attack"
        + ('; not smoothed' if run.sigma else '')))
  train = run.stages.get('train', {})
  if train.get('seconds') is not None and run.metrics['train']:
    notes = [f'on {device_text(run)}'] if 'device' in run.record else []
    for name, of in (('device_memory_mib', 'device '), ('memory_mib', '')):
      peaks = [row[name] for row in run.metrics['train'] if name in row]
      notes += [f'{max(peaks):,.0f} MiB of {of}memory'] if peaks else []
    figures += [Figure('Training time', duration(train['seconds']), '; '.join(notes)),
                _speed(run.metrics['train']), _skipped(run.metrics['train'])]
  return [figure for figure in figures if figure]


def _speed(rows):
  """Speed of training and what held it up, from the rows that have them; None where none has."""
  of = lambda name: [row[name] for row in rows if row.get('images_per_second') and name in row]
  images, steps, waits = map(of, ('images_per_second', 'steps_per_second', 'input_wait'))
  if not images:
    return None
  notes = [f'{np.median(steps):.3g} steps/s'] if steps else []
  notes += [f'{percent(np.mean(waits))} of the time waiting for input'] if waits else []
  return Figure('Training speed', f'{np.median(images):,.0f} images/s', '; '.join(notes))


def _skipped(rows):
  """Steps that were skipped as their loss was bad; None where there are none."""
  skipped = sum(row.get('skipped_steps', 0) for row in rows)
  return skipped and Figure('Skipped training steps', f'{skipped:,}', (
      f'of {rows[-1]["step"]:,}; loss or gradient not finite, or a jump of the loss'))


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
    table = _accuracy_table(
        [f'{attack_norm(run.attack)} ε', 'robust accuracy (%)'], map(pages.epsilon, epsilons),
        accuracies, len(run.attack.idx))
    if run.attack.header.get('smoothed'):
      known = analysis.attack_curve(run.attack, confirmed=True)[1]
      table = Table([*table.columns, 'not shown broken (%)'], [
          [*row, f'{100 * share:.1f}'] for row, share in zip(table.rows, known)])
    result['attack'] = (f'Accuracy under {attack_name(run.attack)}', table)
  if _has_images(run.sandwich):
    result['sandwich'] = ('Between certificate and attack', _sandwich_table(run))
    result['sandwich_images'] = ('Image by image, the smallest ratio first',
                                 _sandwich_images(run))
  if _has_images(run.bounded):
    result['bound'] = ('Between bound and attack', bounded.table(
        run.bounded, run.attack, attack_name(run.attack) if run.attack else ''))
  if run.checked:
    result['checks'] = ('Checks of the attacks', Table(
        ['', 'what was measured', 'found'],
        [['✓' if line['passed'] else '⚠', line['text'], line['found']]
         for line in run.checked['checks']]))
    indicators = [name for name in run.checked['images'][0] if name not in (
        'idx', 'label', 'robust')]
    result['indicators'] = ('Indicators of attack failure', Table(
        ['image', 'label', 'broken', *(name.replace('_', ' ') for name in indicators)],
        [[row['idx'], row['label'], 'no' if row['robust'] else 'yes',
          *(f'{row[name]:.2g}' for name in indicators)] for row in run.checked['images']]))
  if _has_images(run.certified) or _has_images(run.attack):
    result['classes'] = ('By class', _class_table(run))
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
    known = analysis.attack_curve(attack, confirmed=True)[1]
    if attack.header.get('smoothed') and (known > accuracies).any():
      lines.append(Line('the same, undecided counted as right', f'{charts.ATTACK} dash1',
                        epsilons * scale, known))
    if not bounds_certificates(run):
      result['attack'] = accuracy_chart('attack', f'Accuracy under {attack_name(attack)}', label,
                                        lines)
      lines = []
  if _has_images(log):
    (radii, accuracies), = charts.certified_curves([log])
    limits = charts.draw_limits([log])
    result['certified'] = accuracy_chart('certified', 'Accuracy', 'ℓ₂ radius of the perturbation', [
        Line('certified (95% band)', charts.CERTIFIED, radii, accuracies,
             analysis.accuracy_interval(accuracies, len(log.idx)), steps=True), *lines],
        limits=limits)
    certified = log.radius[log.correct]
    if analysis.decided_radii(log) is None and len(certified):
      result['certified_radii'] = charts.histogram(
          'certified_radii', 'Images', 'certified ℓ₂ radius', certified, charts.CERTIFIED,
          limits=limits, size=SMALL)
    if run.sigma:
      (p, shares), = charts.probability_curves([log], [run.sigma])
      result['probability'] = charts.probability_chart(
          [Line('', charts.CERTIFIED, p, shares, analysis.accuracy_interval(shares, len(log.idx)),
                steps=True)], size=SMALL)
  if _has_images(run.sandwich):
    result |= _sandwich_charts(run)
  if _has_images(run.bounded):
    result['bound'] = bounded.chart(
        run.bounded, attack, attack_name(attack) if attack else '')
  result |= _check_figures(run.checked)
  if run.radii is not None:
    scale, unit = _radii_unit(run)
    result['radii'] = charts.histogram(
        'radii', 'Training images', f'{pages.norm(run.radii["norm"])} radius{unit}',
        scale * run.radii['radius'], charts.TRAIN, size=SMALL)
  return result


def _check_figures(checked):
  """Accuracy under PGD against its radius and its steps, as `--stages=check` found it."""
  if not checked:
    return {}
  norm, epsilon, result = pages.norm(checked['norm']), checked['epsilon'], {}
  for name, title, label, most in (
      ('epsilon', 'radius', f'{norm} ε', 8 * epsilon),
      ('steps', 'steps', f'steps within {norm} ε = {pages.epsilon(epsilon)}', np.inf)):
    x, accuracies = map(np.asarray, checked['curves'][name])
    result[f'check_{name}'] = Chart(
        f'check_{name}', f'Accuracy under PGD by {title}', label,
        [Line('', charts.ATTACK, x[x <= most], accuracies[x <= most], marks=name == 'epsilon')],
        (0, 1), percent=True, size=SMALL)
  return result


def accuracy_chart(name, title, x_label, lines, **more) -> Chart:
  """A chart of accuracies in per cent against radii."""
  return Chart(name, title, x_label, lines, (0, 1), percent=True, size=LARGE, **more)


def _sandwich_charts(run):
  """{name: chart}: both radii of each image, and the accuracies that they bound."""
  log = run.sandwich
  crossed, shown = analysis.crossings(log), np.isfinite(log.adversarial) & log.correct
  order = np.argsort(log.certified, kind='stable')
  rows = [order[mask[order]] for mask in (shown & ~crossed, crossed)]
  rows[0] = rows[0][np.linspace(0, len(rows[0]) - 1, min(len(rows[0]), _SCATTERED)).round().astype(
      int)]
  largest = max(log.certified[shown].max(initial=0.), 1e-6)
  points = lambda name, style, of: Line(name, style, log.certified[of], log.adversarial[of],
                                        marks=True, joined=False)
  scatter = Chart('sandwich', 'Smallest confirmed adversarial ℓ₂ radius', 'certified ℓ₂ radius', [
      Line('equal: an attack below is an alarm', 'c6 dash1', [0., largest], [0., largest]),
      points('images', charts.ATTACK, rows[0]), points('within the certificate', 'c4', rows[1])],
      size=SMALL, limits=charts.draw_limits([run.certified] if _has_images(run.certified) else []))
  accuracies = lambda name, style, curve: Line(
      name, style, *curve, analysis.accuracy_interval(curve[1], len(log.idx)), steps=True)
  radii = np.unique(np.concatenate([[0.], log.certified[log.correct]]))
  radii = radii[np.linspace(0, len(radii) - 1, min(len(radii), charts.MAX_POINTS)).round().astype(
      int)]
  radii = np.append(radii, radii[-1] * (1 + 1e-6))
  certified = np.array([np.mean(log.correct & (log.certified >= radius)) for radius in radii])
  bounds = accuracy_chart('sandwich_accuracy', 'Accuracy of the same images', 'ℓ₂ radius', [
      accuracies('certified (95% band)', charts.CERTIFIED, (radii, certified)),
      accuracies('not shown broken', charts.ATTACK, charts.not_broken_curve(log.adversarial)),
      *([bounded.sandwich_line(run.bounded, log.idx)] if _bounds_in_l2(run) else [])])
  return {'sandwich': scatter, 'sandwich_accuracy': bounds._replace(size=SMALL)}


def _bounds_in_l2(run):
  return _has_images(run.bounded) and run.bounded.header['norm'] == 'l2'


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
  values = {'crossed': [], 'listed': None, 'cards': [], 'radii_cards': [], 'attack_name': '',
            'attack_norm': '', 'attack_details': None, 'other_images': False, 'undefined': 0,
            'suite': None, 'bound_crossed': [], 'bound_method': ''}
  values['image_pages'] = sorted(path.stem for path in run.path.glob('attack_image/*.html'))
  if run.gallery is not None:
    values['cards'], values['magnification'] = gallery.adversarial(run.gallery, names)
    kind = 'share of the votes' if run.attack and run.attack.header.get('smoothed') else (
        'probability')
    values |= {'confidence_words': f' and its {kind}' if 'confidence' in run.gallery else '',
               'gallery_norm': pages.norm(run.gallery['norm']),
               'gallery_epsilon': pages.epsilon(float(run.gallery['epsilon']))}
  if _has_images(run.sandwich):
    values['crossed'] = run.sandwich.idx[analysis.crossings(run.sandwich)].tolist()
    whole = tables['sandwich_images'][1]
    values['listed'] = whole._replace(rows=whole.rows[:_LISTED])
  if _has_images(run.bounded):
    crossed = analysis.bound_crossings(run.bounded, run.attack).any(axis=1)
    values |= {'bound_crossed': run.bounded.idx[crossed].tolist(),
               'bound_method': bounded.method(run.bounded)}
  if run.radii is not None:
    scale, unit = _radii_unit(run)
    values['radii_cards'] = gallery.by_radius(
        run.radii, names, lambda radius: f'{scale * radius:.3g}' + ('/255' if unit else ''))
  if _has_images(run.attack):
    values |= {
        'attack_name': attack_name(run.attack), 'attack_norm': attack_norm(run.attack),
        'attack_details': Table(['setting', 'value'], [
            [key, pages.text(value)] for key, value in _attack_settings(run.attack).items()]),
        'undefined': analysis.undefined_images(run.attack),
        'other_images': run.attack.header.get('attack', {}).get('norm') == 'l2'
        and _has_images(run.certified)
        and not np.array_equal(np.sort(run.certified.idx), np.sort(run.attack.idx))}
  suite = run.stages.get('attack', {}).get('autoattack')
  if suite:
    values['suite'] = {**suite, 'parts': Table(
        ['ε', 'after', 'robust accuracy (%)', 'images broken', 'time'],
        [[part['epsilon'] and pages.epsilon(part['epsilon']), part['name'],
          f'{100 * part["robust_accuracy"]:.2f}', part['broken'], duration(part['seconds'])]
         for part in suite['parts']])}
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
  return name.upper() if len(name) <= 4 else name.replace('autoattack', 'AutoAttack')


def _attack_settings(attack):
  """{name: value} of what the attack was, without what does not apply to it."""
  header = attack.header
  settings = {name: value for name, value in header.get('attack', {}).items()
              if name not in ('name', 'norm') and value not in (None, 'none')}
  if header['attack'].get('norm') != 'l1':
    settings = {name: value for name, value in settings.items() if not name.startswith('l1_')}
  if 'step_size' in settings:  # Which step_ratio would have decided.
    settings.pop('step_ratio', None)
  if not settings.get('min_step_size'):
    settings.pop('min_step_size', None)
  if header.get('smoothed'):
    drawn = {name: header.get(name) for name in ('sigma', 'num_noise', 'n', 'alpha')}
    return settings | {name: value for name, value in drawn.items() if value is not None}
  return {name: value for name, value in settings.items() if not name.startswith('smoothed')}


def _trained_against(run):
  """The radius of the attacks in training; None where there were none, or in another norm."""
  method = run.config.get('method', {})
  trained = method.get('epsilon')
  trained = run.config.get('epsilon') if trained is None and 'epsilon' in method else trained
  norms = [attack.get('norm', 'l2') for attack in (method.get('attack', {}),
                                                   run.attack.header.get('attack', {}))]
  return (trained if trained and 'attack' in method and 'train' in run.stages
          and norms[0] == norms[1] else None)


def _shown_radius(run):
  """The place, in the epsilons of the attack, of what training was against, else of the largest."""
  epsilons, trained = run.attack.epsilons, _trained_against(run)
  near = np.flatnonzero(np.isclose(epsilons, trained, rtol=1e-3)) if trained else []
  return int(near[0]) if len(near) else int(np.argmax(epsilons))


def attack_norm(attack) -> str:
  """The attack's norm; see `pages.norm`."""
  return pages.norm(attack.header.get('attack', {}).get('norm', ''))


def epsilon_axis(attacks) -> tuple[float, str]:
  """(scale, label) of the axis of the epsilons of several attacks; see `pages.epsilon_axis`."""
  return pages.epsilon_axis(attacks[0].header.get('attack', {}).get('norm', ''),
                            [epsilon for attack in attacks for epsilon in attack.epsilons])


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
  if _has_images(run.bounded):
    accuracy = np.mean(run.bounded.predict == run.bounded.label)
    return Figure(name, percent(accuracy), _measured(accuracy, len(run.bounded.idx)))
  return None


def _without_noise(run):
  """Clean accuracy of the network that is smoothed, by itself."""
  network = run.stages.get('certify', {}).get('network') if _has_images(run.certified) else None
  return network and Figure(
      'The network without noise', percent(network['accuracy']),
      _measured(network['accuracy'], network['num_images']) + '; not smoothed')


def _measured(accuracy, num_images):
  low, high = analysis.accuracy_interval(accuracy, num_images)
  return f'{num_images:,} images; 95% interval {100 * low:.1f}–{100 * high:.1f}'


def _accuracy_table(columns, names, accuracies, num_images):
  intervals = zip(*analysis.accuracy_interval(accuracies, num_images))
  return Table([*columns, '95% interval', 'images'], [
      [name, f'{100 * accuracy:.1f}', f'{100 * low:.1f}–{100 * high:.1f}',
       f'{round(accuracy * num_images)}/{num_images}']
      for name, accuracy, (low, high) in zip(names, accuracies, intervals)])


def _class_table(run):
  """Accuracies by class; those of certification and attack may be of other images."""
  names, columns = run.record.get('dataset', {}).get('class_names') or [], []
  if _has_images(run.certified):
    log = run.certified
    columns += [('images', log.label, None), ('right (%)', log.label, log.correct)]
    columns += [(f'certified {radius:g} (%)', log.label, analysis.certified_images(log, radius))
                for radius in headline_radii(log, run.sigma)]
  if _has_images(run.attack):
    attack = run.attack
    columns += [('attacked images', attack.label, None)]
    if not _has_images(run.certified):
      columns.append(('right (%)', attack.label, attack.clean == attack.label))
    if len(attack.epsilons):
      shown = _shown_radius(run)
      columns.append((f'{attack_name(attack)} {pages.epsilon(attack.epsilons[shown])} (%)',
                      attack.label, analysis.robust(attack)[:, shown]))
  rows = []
  for k in np.unique(np.concatenate([label for _, label, _ in columns])):
    of_class = [values if values is None else values[label == k] for _, label, values in columns]
    rows.append([gallery.class_name(int(k), names), *(
        str(np.sum(label == k)) if values is None
        else f'{100 * values.mean():.1f}' if len(values) else None
        for values, (_, label, _) in zip(of_class, columns))])
  return Table(['class', *(name for name, _, _ in columns)], rows)


def _sandwich_table(run):
  """What both radii say together; all holding at once too where the certificates can."""
  readings = {'each image by itself': run.sandwich}
  if run.votes is not None and run.certified.settings.get('name') == 'fixed':
    readings['all at once'] = analysis.sandwich_at_once(
        run.sandwich, analysis.simultaneous(run.certified, run.votes, path=run.path))
  rows = {name: {} for name in (
      'images', 'right', 'misclassified already', 'right, with an adversarial example',
      'right, none confirmed', 'within a certificate', 'median certified ℓ₂ radius',
      'median adversarial ℓ₂ radius', 'ratio of the two: median', '10%', '90%')}
  for reading, log in readings.items():
    both, ratios = log.correct & np.isfinite(log.adversarial), analysis.radius_ratios(log)
    middle = lambda values, q=0.5: f'{np.quantile(values, q):.3f}' if len(values) else None
    for row, value in zip(rows.values(), (
        len(log.idx), log.correct.sum(), (log.adversarial == 0).sum(), both.sum(),
        (log.correct & ~both).sum(), analysis.crossings(log).sum(), middle(log.certified[both]),
        middle(log.adversarial[both]), middle(ratios), middle(ratios, 0.1), middle(ratios, 0.9))):
      row[reading] = value if value is None or isinstance(value, str) else f'{value:,}'
  if _bounds_in_l2(run):  # Of no draws, hence all at once.
    own = run.bounded
    of = (own.predict == own.label) & np.isin(own.idx, run.sandwich.idx)
    radii = analysis.verified_radius(own)[of]
    rows['without noise, right: median verified ℓ₂ radius'] = dict.fromkeys(
        readings, f'{np.median(radii):.3f}' if len(radii) else None)
  return Table(['ℓ₂ radii', *readings], [[name, *row.values()] for name, row in rows.items()])


def _sandwich_images(run):
  """A line an image: both radii, the smallest ratio first, then those that have none."""
  log, names = run.sandwich, run.record.get('dataset', {}).get('class_names') or []
  known = log.correct & (log.certified > 0) & np.isfinite(log.adversarial)
  ratios = np.where(known, log.adversarial / np.where(known, log.certified, 1), np.inf)
  rows = []
  for i in np.lexsort((log.idx, ratios)):
    found = np.isfinite(log.adversarial[i])
    rows.append([int(log.idx[i]), gallery.class_name(int(log.label[i]), names),
                 gallery.class_name(int(log.predict[i]), names), f'{log.certified[i]:.3f}',
                 f'{log.adversarial[i]:.3f}' if found else None,
                 f'{ratios[i]:.2f}' if known[i] else None])
  return Table(['image', 'class', 'certified class', 'certified ℓ₂', 'adversarial ℓ₂', 'ratio'],
               rows)


def _training_table(metrics):
  """Every test evaluation beside the training metrics last logged before it."""
  number = lambda row, name, spec: None if row.get(name) is None else format(row[name], spec)
  train = metrics['train']
  tests = {split: {row['step']: row for row in metrics[split]}
           for split in ('validation', 'test') if metrics[split]}
  rows = []
  for tested in metrics['test'] or metrics['validation'] or train:
    trained = next((row for row in reversed(train) if row['step'] <= tested['step']), {})
    at_once = [trained, *(found.get(tested['step'], {}) for found in tests.values())]
    rows.append([tested['step'], number(tested, 'epoch', '.4g')] + [
        number(row, name, spec) for row in at_once
        for name, spec in (('loss', '.4f'), ('accuracy', '.2%'))])
  return Table(['step', 'epoch', *(f'{split} {name}' for split in ('train', *tests)
                                   for name in ('loss', 'accuracy'))], rows)


def training_axis(rows) -> str:
  """What training is drawn against: the epoch, or the step where a row has none."""
  return 'epoch' if all('epoch' in row for row in rows) else 'step'


def training_curve(rows, name, x_name):
  """(x, y), [num_points] each, of the rows of metrics that have a value of this name."""
  kept = [row for row in rows if row.get(name) is not None]
  return np.array([row[x_name] for row in kept]), np.array([row[name] for row in kept])


def _training_charts(metrics):
  """A chart of every metric, loss and accuracy first."""
  rows = [row for rows in metrics.values() for row in rows]
  if not rows:
    return []
  names = {name for row in rows for name, value in row.items() if isinstance(value, int | float)
           and name not in _NOT_DRAWN}
  first = [name for name in ('loss', 'accuracy', 'learning_rate') if name in names]
  x_name = training_axis(rows)

  def line(split, name, style):
    x, y = charts.average(*training_curve(metrics[split], name, x_name))
    return Line(split, style, x, y, marks=split != 'train' and len(x) <= 30)

  return [Chart(f'training-{name}', name.replace('_', ' ').capitalize(), x_name,
                [line('train', name, charts.TRAIN), line('validation', name, charts.VALIDATION),
                 line('test', name, charts.TEST)],
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
