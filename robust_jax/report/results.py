"""The figures and tables of a report, as text. The page and the terminal show the same ones."""

import math
from typing import NamedTuple

import numpy as np

from robust_jax import analysis
from robust_jax.analysis import Table, listings
from robust_jax.report.contents import Contents


class Figure(NamedTuple):
  """A key figure: what it is, its value, and what it was measured on."""

  name: str
  value: str
  note: str


def key_figures(run: Contents) -> list[Figure]:
  """The headline of a run; what has not been measured is left out."""
  figures = [_clean(run)]
  log, attack = run.certified, run.attack
  if log and len(log.idx):
    radii = _headline_radii(run)
    accuracies = analysis.certified_accuracy(log, radii)
    figures += [Figure(f'Certified accuracy, ℓ₂ radius {radius:g}', percent(accuracy),
                       _measured(accuracy, len(log.idx)))
                for radius, accuracy in zip(radii, accuracies)]
    figures.append(Figure(
        'Average certified radius', listings.acr_text(log),
        '' if log.settings.get('choose') == 'label'
        else f'abstains on {percent(analysis.abstention_rate(log))}'))
    if run.votes is not None:
      figures.append(Figure('Draws for a certificate', f'{listings.mean_draws(run.votes):,.0f}',
                            f'mean an image; {duration(np.mean(log.time))} an image'))
  if attack and len(attack.idx) and len(attack.epsilons):
    largest = int(np.argmax(attack.epsilons))
    accuracy = analysis.robust_accuracy(attack)[largest]
    smoothed = '; smoothed' if attack.header.get('smoothed') else ''
    figures.append(Figure(
        f'{attack_name(attack)} accuracy, {norm(attack)} '
        f'ε = {epsilon_text(attack.epsilons[largest])}',
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


def _headline_radii(run):
  """sigma and 2 sigma, or what was tested next below them, as far as anything is certified."""
  log, grid = run.certified, radius_grid(run.certified)
  step = run.sigma or grid[min(1, len(grid) - 1)]
  radii = [step, 2 * step]
  if analysis.decided_radii(log) is not None:
    radii = [grid[grid <= radius + 1e-9].max() for radius in radii]
  return sorted({float(radius) for radius in radii if 0 < radius <= log.radius.max()})


def _clean(run):
  """Clean accuracy of the classifier that is deployed: the smoothed one where there is one."""
  name, log, attack = 'Clean accuracy', run.certified, run.attack
  tests = [row for row in run.metrics['test'] if 'accuracy' in row]
  if log and len(log.idx):
    accuracy = analysis.certified_accuracy(log, [0.0])[0]
    return Figure(name, percent(accuracy), _measured(accuracy, len(log.idx)) + '; smoothed')
  attacked = attack and len(attack.idx)
  if attacked and (attack.header.get('smoothed') or not tests):
    accuracy = analysis.clean_accuracy(attack)
    return Figure(name, percent(accuracy), _measured(accuracy, len(attack.idx)))
  if tests:
    note = f'test split, {_when(tests[-1])}'
    return Figure(name, percent(tests[-1]['accuracy']),
                  note + '; base classifier under noise' if run.sigma else note)
  return None


def tables(run: Contents) -> dict[str, tuple[str, Table]]:
  """{file name: (caption, table)} of everything measured so far."""
  result = {'summary': ('Key figures', Table(
      ['figure', 'value', 'measured on'], key_figures(run)))}
  if run.certified and len(run.certified.idx):
    result['certified'] = ('Certified accuracy', _certified_table(run.certified))
  if run.attack and len(run.attack.idx):
    result['attack'] = (f'Accuracy under {attack_name(run.attack)}',
                        _attack_table(run.attack))
  if any(run.metrics.values()):
    result['training'] = ('Training', _training_table(run.metrics))
  if run.radii is not None:
    norm, (_, unit) = norm_text(str(run.radii['norm'])), radii_unit(run)
    result['radii'] = (f'Quantiles of the {norm} radii{unit}, by class', _radii_table(run))
  return result


def _certified_table(log):
  radii, num_images = radius_grid(log), len(log.idx)
  accuracies = analysis.certified_accuracy(log, radii)
  low, high = analysis.accuracy_interval(accuracies, num_images)
  return Table(['ℓ₂ radius', 'certified accuracy (%)', '95% interval', 'images'], [
      [f'{radius:.2f}', f'{100 * accuracy:.1f}', f'{100 * a:.1f}–{100 * b:.1f}',
       f'{round(accuracy * num_images)}/{num_images}']
      for radius, accuracy, a, b in zip(radii, accuracies, low, high)])


def _attack_table(attack):
  epsilons, accuracies = attack_curve(attack)
  num_images = len(attack.idx)
  low, high = analysis.accuracy_interval(accuracies, num_images)
  return Table([f'{norm(attack)} ε', 'robust accuracy (%)', '95% interval', 'images'], [
      [epsilon_text(epsilon), f'{100 * accuracy:.1f}', f'{100 * a:.1f}–{100 * b:.1f}',
       f'{round(accuracy * num_images)}/{num_images}']
      for epsilon, accuracy, a, b in zip(epsilons, accuracies, low, high)])


def _training_table(metrics):
  """Every test evaluation beside the training metrics last logged before it."""
  train, test = metrics['train'], metrics['test']
  rows = []
  for tested in test or train:
    trained = [row for row in train if row['step'] <= tested['step']]
    trained = trained[-1] if trained else {}
    both = [tested['step'], _number(tested.get('epoch'), '.4g')]
    both += [_number(trained.get('loss'), '.4f'), _number(trained.get('accuracy'), '.2%')]
    if test:
      both += [_number(tested.get('loss'), '.4f'), _number(tested.get('accuracy'), '.2%')]
    rows.append(both)
  columns = ['step', 'epoch', 'train loss', 'train accuracy']
  return Table(columns + ['test loss', 'test accuracy'] if test else columns, rows)


def radii_unit(run):
  """(factor of the radii, its name): 255ths for small ones in linf, as papers have them."""
  small = str(run.radii['norm']) == 'linf' and run.radii['radius'].max() <= 32 / 255
  return (255., ', in 255ths') if small else (1., '')


def _radii_table(run):
  scale, unit = radii_unit(run)
  radius, label = scale * run.radii['radius'], run.radii['label']
  names = run.record.get('dataset', {}).get('class_names') or []
  groups = [('all', np.ones(len(label), bool))] + [
      (names[k] if k < len(names) else f'class {k}', label == k) for k in np.unique(label)]
  return Table(['class', 'images', 'at 0 (%)', '10%', '50%', '90%', '100%'], [
      [name, int(of.sum()), f'{100 * np.mean(radius[of] == 0):.1f}',
       *(f'{value:.{2 if unit else 3}f}'
         for value in np.quantile(radius[of], (0.1, 0.5, 0.9, 1)))]
      for name, of in groups])


def attack_curve(attack):
  """(epsilons, accuracies), ascending, from no attack at epsilon 0."""
  order = np.argsort(attack.epsilons, kind='stable')
  order = order[attack.epsilons[order] > 0]
  return (np.concatenate([[0.0], attack.epsilons[order]]),
          np.concatenate([[analysis.clean_accuracy(attack)],
                          analysis.robust_accuracy(attack)[order]]))


def radius_grid(log):
  """Round radii from 0 to the largest certified one; quarters where they give 4 to 20 of them.

  Of a log that has tested the radii of a grid, these.
  """
  grid = analysis.decided_radii(log)
  if grid is not None:
    return grid
  largest = log.radius.max(initial=0.0)
  step = next((step for step in (0.25, 0.1, 0.05) if largest >= 2.999 * step), 0.01)
  while largest / step > 20:
    step *= 2
  return step * np.arange(max(int(largest / step + 1e-9), 1) + 1)


def attack_name(attack):
  """The attack's name as a reader says it."""
  name = str(attack.header.get('attack', {}).get('name', 'attack'))
  return name.upper() if len(name) <= 4 else name


def norm(attack):
  """ℓ∞, ℓ₂ or ℓ₁; the attack's own word for anything else."""
  name = str(attack.header.get('attack', {}).get('norm', ''))
  return norm_text(name)


def norm_text(name):
  return {'linf': 'ℓ∞', 'l2': 'ℓ₂', 'l1': 'ℓ₁'}.get(str(name), str(name))


def epsilon_text(epsilon):
  """An epsilon; in 255ths where it is a whole number of them below 0.2, as 8/255."""
  steps = epsilon * 255
  if 0 < epsilon < 0.2 and abs(steps - round(steps)) < 1e-3:
    return f'{round(steps)}/255'
  return f'{epsilon:.4g}'


def epsilon_axis(attack):
  """(scale, label) of an axis of epsilons: in 255ths where all are whole numbers of them."""
  label = f'{norm(attack)} ε'
  if all('/' in epsilon_text(epsilon) for epsilon in attack.epsilons):
    return 255.0, f'{label}, in 255ths'
  return 1.0, label


def percent(fraction):
  return '–' if math.isnan(fraction) else f'{100 * fraction:.1f}%'


def duration(seconds):
  """Seconds as a person says them."""
  if seconds < 120:
    return f'{seconds:.3g} s'
  minutes = round(seconds / 60)
  return f'{minutes} min' if minutes < 120 else f'{minutes // 60} h {minutes % 60:02d} min'


def device_text(run):
  """The devices of the run, as `8 × TPU v4`."""
  record = {**run.record, **run.stages.get('train', {})}
  device, number = record.get('device', 'unknown device'), record.get('num_devices', 1)
  return f'{number} × {device}' if number > 1 else str(device)


def _measured(accuracy, num_images):
  low, high = analysis.accuracy_interval(accuracy, num_images)
  return f'{num_images:,} images; 95% interval {100 * low:.1f}–{100 * high:.1f}'


def _when(row):
  return f'epoch {row["epoch"]:.4g}' if 'epoch' in row else f'step {row["step"]:,}'


def _number(value, spec):
  return None if value is None else format(value, spec)
