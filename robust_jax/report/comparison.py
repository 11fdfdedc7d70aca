"""The figures of several runs side by side; only like is set beside like.

Runs on different datasets are apart, logs are cut to the images that all of them have, and another
attack is another column, unless all of the runs attack one classifier.
"""

import json
from typing import Any, NamedTuple

import numpy as np

from robust_jax import analysis
from robust_jax.analysis import Best, Table
from robust_jax.analysis.comparison import Column, differing_settings, other_label
from robust_jax.config.sections import flat
from robust_jax.errors import UserError
from robust_jax.report import bounded, charts, groups, pages, run
from robust_jax.report.contents import Contents
from robust_jax.report.groups import Group

_MAX_RADII = 8


class Panel(NamedTuple):
  """The runs on one dataset.

  Attributes:
    dataset: its name; 'unnamed data' if not known.
    groups: list of `Group`.
    columns: list of `Column`.
    certified: [group][run] certification logs on the images that all have; None without one.
    attacks: {what was done: [group][run] attack logs, in the same way}.
    notes: sentences on what is missing or cannot be compared.
  """

  dataset: str
  groups: list[Group]
  columns: list[Column]
  certified: list[list[Any]]
  attacks: dict[str, list[list[Any]]]
  notes: list[str]


def compare(runs: list[Contents]) -> list[Panel]:
  """The runs by dataset, in the order of their first ones.

  Raises:
    UserError: nothing was measured in any, or logs disagree on the labels of a dataset.
  """
  measured = [each for each in runs if any(each.metrics.values()) or each.attack
              or each.certified or each.bounded]
  if not measured:
    raise UserError(f'{", ".join(str(each.path) for each in runs)}: nothing is measured yet')
  datasets = {}
  for each in measured:
    datasets.setdefault(_dataset(each), []).append(each)
  nothing = [f'{each.path}: nothing is measured yet; it is left out.' for each in runs
             if each not in measured]
  panels = [_panel(dataset, of_one) for dataset, of_one in datasets.items()]
  return [panels[0]._replace(notes=nothing + panels[0].notes), *panels[1:]]


def title(panels) -> str:
  """What is compared, in a phrase."""
  num_runs = sum(len(group.runs) for panel in panels for group in panel.groups)
  names = ' and '.join(panel.dataset for panel in panels)
  configs = sum(len(panel.groups) for panel in panels)
  if num_runs == configs:
    return f'{num_runs} run{"s" if num_runs > 1 else ""} on {names}'
  return f'{num_runs} runs of {"one config" if configs == 1 else f"{configs} configs"} on {names}'


def _dataset(each):
  """The name of a run's test images: those of other names are not compared."""
  settings = each.config.get('data', {})
  name = each.record.get('dataset', {}).get('name') or settings.get('name', '')
  parts = [settings.get('data_dir') if name == 'folder' else None, settings.get('test_split')]
  return ' '.join(str(part) for part in (name, *parts) if part) or 'unnamed data'


def _panel(dataset, runs):
  found, notes = groups.group(runs), []
  logs = {name: [[_finished(each, name, stage, notes) for each in group.runs] for group in found]
          for name, stage in (('certified', 'certify'), ('attack', 'attack'),
                              ('bounded', 'bound'))}
  certified, certified_alike = _on_common_images(logs['certified'], 'certified', notes)
  attacked, attacked_alike = _on_common_images(logs['attack'], 'attacked', notes)
  bounds, bounded_alike = _on_common_images(logs['bounded'], 'bounded', notes)
  # Fewer draws certify smaller radii, whatever the network: such figures are not compared.
  differing = differing_settings([log.settings for log in present(certified)])
  differing.pop('sigma', None)
  attacks = _by_attack(attacked)
  one_classifier = len(attacks) > 1 and _are_one_classifier(found, attacked)
  if one_classifier:
    attacks = _by_norm(attacked)
  columns = [
      *_accuracies(found, certified, attacked, attacks, certified_alike and not differing,
                   attacked_alike and not one_classifier, bounds),
      *_verified(bounds, bounded_alike),
      *_epoch_time(found)]
  notes += _notes(found, differing, certified, attacks)
  numbers = {len(values) for values in present(columns[0].values)} if columns else ()
  others = {len(log.idx) for of_kind in (certified, attacked, bounds) for log in present(of_kind)}
  if columns and columns[0].title == 'clean' and len(others) > 1:
    notes.append(f'Clean accuracy is on {_listed(f"{number:,}" for number in sorted(numbers))} '
                 'images.')
  if any(column.title == 'test' for column in columns):
    notes += _noise_note(_tested_noises(found))
  if any(len(column.figures(i)) > 1 and len(set(column.figures(i))) == 1
         for column in columns for i in range(len(found))):
    notes.append('± 0 is where all seeds have exactly the same figure, as happens by chance on few '
                 'images: another seed may well have another.')
  return Panel(dataset, found, columns, certified, attacks, notes)


# What the runs have left, made comparable.


def _finished(each, name, stage, notes):
  """The log of a stage that is done, and has images; a note on any other that has begun."""
  log = getattr(each, name)
  if log is None or not len(log.idx):
    return None
  if each.stages.get(stage, {}).get('status', 'done') != 'done':
    notes.append(f'{each.path}: the {stage} stage is not finished; what it has measured so far is '
                 'left out.')
    return None
  return log


def present(logs) -> list:
  """Those of [group][run] logs, or anything else, that are there."""
  return [log for row in logs for log in row if log is not None]


def on_each(function, logs) -> list:
  """[group][run] of what a function gives of logs; None where there is none."""
  return [[None if log is None else function(log) for log in row] for row in logs]


# What is measured on images of each kind; clean accuracy on any of them.
_FIGURES = {'certified': 'certified accuracies and ACR', 'attacked': 'accuracies under attack',
            'bounded': 'verified accuracies'}


def _on_common_images(logs, what, notes):
  """([group][run] logs on the images that all have, whether there are any)."""
  there = present(logs)
  if not there:
    return logs, False
  idx = analysis.common_images(there)
  sizes = sorted({len(log.idx) for log in there})
  if not len(idx):
    notes.append(f'The runs have no {what} image in common: each figure is on the run\'s own '
                 'images, and they are not compared.')
    return logs, False
  if sizes != [len(idx)]:
    notes.append(f'Of {_listed(f"{size:,}" for size in sizes)} {what} images, {_FIGURES[what]} are '
                 f'on the {len(idx):,} that all runs have in common; so they may differ from those '
                 'of the runs\' own pages.')
  cut = on_each(lambda log: analysis.on_images(log, idx), logs)
  other = other_label(present(cut))
  if other:
    raise UserError(f'the runs must be on the same dataset, got other labels of {what} images, '
                    f'idx {other[2]} for one')
  return cut, True


def _notes(found, differing, certified, attacks):
  notes = []
  if differing:
    each = _listed([f'{name} ({_listed(map(_setting_text, values))})'
                    for name, values in differing.items()])
    notes.append(f'The certificates differ in {each}, which alone changes what can be certified: '
                 'they stand side by side, without differences or a best value.')
  undefined = sum(analysis.undefined_images(log) for of_one in attacks.values()
                  for log in present(of_one))
  if undefined:
    notes.append(f'On {undefined:,} images a gradient of the attack was not finite: accuracy under '
                 'attack may be too high there.')
  if any(len({tuple(sorted(log.epsilons)) for log in present(of_one)}) > 1
         for of_one in attacks.values()):
    notes.append('The attacks measured different radii. An image counts at ε if it is right at '
                 'every smaller ε measured as well, so a longer list is a little stricter.')
  if any(analysis.decided_radii(log) is not None for log in present(certified)):
    notes.append('Where only the radii of a grid were tested, the ACR is a lower bound: every '
                 'certified radius is rounded down to one of them.')
  chosen = [str(each.path) for group in found for each in group.runs if each.chosen_by_test]
  if chosen:
    notes.append(f'{_listed(chosen)}: the checkpoint was chosen by accuracy on the test split, on '
                 'which it is judged: its figures are too good.')
  devices = {run.device_text(each) for group in found for each in group.runs
             if 'device' in {**each.record, **each.stages.get('train', {})}}
  if len(devices) > 1:
    notes.append(f'Training ran on different devices ({_listed(sorted(devices))}): its times do '
                 'not compare.')
  return notes


def _noise_note(noises):
  """A line on the noise under which networks are tested, where there is some."""
  if not any(noises):
    return []
  said = [f'one draw of noise, sigma {sigma:g}' if sigma else 'no noise' for sigma in noises]
  if len(noises) == 1:
    return [f'Column "test": the network itself under {said[0]}.']
  each = _listed(f'under {text}: {", ".join(labels)}'
                 for text, labels in zip(said, noises.values()))
  return [f'Column "test" has the networks themselves {each}; so none is marked as the best.']


def _setting_text(value):
  value = json.loads(value)
  return f'{value:,}' if isinstance(value, int | float) else pages.text(value)


def _listed(words):
  *most, last = map(str, words)
  return f'{", ".join(most)} and {last}' if most else last


def _by_attack(attacked):
  """{what was done: [group][run] logs}; another norm or number of draws is another attack."""
  key = lambda log: json.dumps(_attack_settings(log), sort_keys=True)
  logs, names = {key(log): log for log in present(attacked)}, {}
  for one, log in logs.items():
    names.setdefault(f'{run.attack_name(log)} {run.attack_norm(log)}', []).append(one)
  result = {}
  for name, keys in names.items():
    # The same words for two attacks are told apart by what differs, as configs are.
    settings = [flat(_attack_settings(logs[one])) for one in keys]
    fields = groups.telling(settings, groups.differing(settings))
    for one, setting in zip(keys, settings):
      details = ''.join(f', {field}={groups.value_text(field, setting[field])}'
                        for field in fields if setting.get(field) is not None)
      result[name + details] = [
          [log if log is not None and key(log) == one else None for log in row]
          for row in attacked]
  return result


def _are_one_classifier(found, attacked):
  """Whether the logs say that all of them attacked the same parameters, in the same way."""
  keys = set()
  for group, row in zip(found, attacked):
    for each, log in zip(group.runs, row):
      if log is not None:
        data = each.config.get('data', {})
        keys.add(json.dumps([
            [log.header.get(name) for name in ('classifier_sha256', 'checkpoint_step', 'sigma')],
            each.config.get('model'), data.get('mean'), data.get('std')], sort_keys=True))
        if log.header.get('classifier_sha256') is None:
          return False
  return len(keys) == 1


def _by_norm(attacked):
  """{norm: [group][run] logs} of one classifier, whose rows are attacks, none of them the best."""
  names = {f'attack {run.attack_norm(log)}': run.attack_norm(log) for log in present(attacked)}
  return {name: [[log if log is not None and run.attack_norm(log) == norm else None for log in row]
                 for row in attacked] for name, norm in names.items()}


def _attack_settings(log):
  drawn = ('num_noise', 'n', 'alpha') if log.header.get('smoothed') else ()
  return {**log.header.get('attack', {}), **{name: log.header.get(name) for name in drawn}}


# Columns.


def _accuracies(found, certified, attacked, attacks, certified_alike, attacked_alike, bounds):
  """Clean accuracy, from the source that most groups have; under attack; certified; ACR.

  Where the attacked network is not the smoothed one, clean accuracy is that of the attacked.
  """
  logs = present(certified)
  smoothed = Column('clean', on_each(lambda log: log.correct, certified), compared=certified_alike)
  sources = [
      smoothed,
      Column('clean', on_each(lambda log: log.clean == log.label, attacked),
             compared=attacked_alike),
      Column('test', [[_test_accuracy(each) for each in group.runs] for group in found],
             compared=len(_tested_noises(found)) < 2),
      Column('clean', on_each(lambda log: log.predict == log.label, bounds))]
  if not any(log.header.get('smoothed') for log in present(attacked)):
    sources[:2] = sources[1::-1]
  count = lambda column: sum(map(bool, map(column.figures, range(len(found)))))
  clean = max(sources, key=count)  # The first of equals.
  columns = [clean] if count(clean) else []
  for name, of_one in attacks.items():
    epsilons = np.unique(np.concatenate([log.epsilons for log in present(of_one)]))
    columns += [Column(f'{name} {pages.epsilon(epsilon)}',
                       on_each(lambda log, epsilon=epsilon: _robust_at(log, epsilon), of_one),
                       compared=attacked_alike) for epsilon in epsilons if epsilon > 0]
  if logs:
    shown = radii(logs) if clean is smoothed else [0., *radii(logs)]
    columns += [Column(f'certified {radius:g}', on_each(
        lambda log, radius=radius: analysis.certified_images(log, radius)
        if radius == 0 or analysis.is_decided(log, radius) else None, certified),
        compared=certified_alike) for radius in shown]
    columns.append(Column('ACR', on_each(lambda log: log.correct * log.radius, certified), scale=1.,
                          decimals=3, compared=certified_alike))
  return columns


def _verified(bounds, alike):
  """A column for each norm, radius and way of bounding."""
  kinds, columns = {}, []
  for log in present(bounds):
    kinds.setdefault((log.header['norm'], bounded.method(log)), set()).update(log.epsilons)
  for (norm, method), epsilons in kinds.items():
    of_kind = lambda log, norm=norm, method=method: (
        log.header['norm'] == norm and bounded.method(log) == method)
    by = f' by {method}' if len(kinds) > 1 else ''
    columns += [Column(f'verified {pages.norm(norm)} {pages.epsilon(epsilon)}{by}', on_each(
        lambda log, of_kind=of_kind, epsilon=epsilon: _verified_at(log, epsilon)
        if of_kind(log) else None, bounds), compared=alike) for epsilon in sorted(epsilons)]
  return columns


def _verified_at(log, epsilon):
  number = np.flatnonzero(log.epsilons == epsilon)
  return log.verified[:, number[0]] if len(number) else None


def _test_accuracy(each):
  """The accuracy of the parameters that are attacked and certified."""
  done = each.stages.get('train', {}).get('status', 'done') == 'done'
  return np.array([each.tested['accuracy']]) if done and each.tested else None


def _tested_noises(found):
  """{standard deviation of the noise under which a network is tested: labels of its groups}."""
  noises = {}
  for group in found:
    for each in group.runs:
      if _test_accuracy(each) is not None:
        labels = noises.setdefault(each.config.get('sigma') or 0., [])
        labels += [group.label] * (group.label not in labels)
  return noises


def _robust_at(log, epsilon):
  number = np.flatnonzero(log.epsilons == epsilon)
  return analysis.robust(log)[:, number[0]] if len(number) else None


def radii(logs):
  """The radii that were decided, and round ones up to the largest certified of logs without a grid.

  At most `_MAX_RADII`, without zero.
  """
  free = [log for log in logs if analysis.decided_radii(log) is None]
  grids = [analysis.decided_radii(log) for log in logs if analysis.decided_radii(log) is not None]
  grids += [analysis.round_radii(free)] if free else []
  found = np.unique(np.round(np.concatenate([[0.], *grids]), 9))
  while len(found) - 1 > _MAX_RADII:
    found = found[::2]
  return found[1:].tolist()


def _epoch_time(found):
  """Seconds of an epoch at the median speed, so that compiling does not count."""
  def seconds(each):
    rows = [row for row in each.metrics['train']
            if row.get('images_per_second') and row.get('epoch')]
    batch_size = each.config.get('train', {}).get('batch_size')
    if not rows or not batch_size:
      return None
    images = rows[-1]['step'] / rows[-1]['epoch'] * batch_size
    return np.array([images / np.median([row['images_per_second'] for row in rows])])

  column = Column('s / epoch', [[seconds(each) for each in group.runs] for group in found],
                  scale=1., decimals=2, compared=False)
  return [column] if present(column.values) else []


# Tables.


def tables(panel: Panel) -> dict[str, tuple[str, Table]]:
  """{name: (caption, table)}: figures; differences, runs, fields, own_fields if they say more."""
  several = any(len(group.runs) > 1 for group in panel.groups)
  result = {'figures': (
      'Mean ± 95% interval of the mean over n training runs, accuracies in %' if several
      else 'One training run each, accuracies in %', _figures(panel))}
  if _differing(panel):
    result['differences'] = (f'Differences from {panel.groups[0].label}, with 95% intervals',
                             _differences(panel))
  if several:
    result['runs'] = ('Every run', _runs(panel))
  fields = groups.differing([group.config for group in panel.groups])
  shared = [field for field in fields if all(field in group.config for group in panel.groups)]
  own = [field for field in fields if field not in shared]  # Often those of one method.
  for name, caption, some in (('fields', 'Fields that differ', shared),
                              ('own_fields', 'Fields that only some of them have', own)):
    if some:
      result[name] = caption, _fields(panel, some)
  return result


def bars(panel: Panel):
  """The table of figures as a picture, for a README."""
  caption, table = tables(panel)['figures']
  return charts.draw_table(f'{panel.dataset}. {caption}', table.columns, table.rows, {
      2 + j: np.array([column.mean(i)[0] for i in range(len(panel.groups))])
      for j, column in enumerate(panel.columns) if column.compared})


def _figures(panel):
  rows = []
  for i, group in enumerate(panel.groups):
    cells = [_cell(column, i, len(group.runs)) for column in panel.columns]
    rows.append([group.label, str(len(group.runs)), *cells])
  return Table(['config', 'n', *(column.title for column in panel.columns)], rows)


def _cell(column, i, num_runs):
  num = len(column.figures(i))
  if not num:
    return None
  mean, half = column.mean(i)
  text = column.text(mean, half) + (f' (n={num})' if num < num_runs else '')
  means = [round(column.mean(number)[0], column.decimals) for number in range(len(column.values))
           if column.figures(number)]
  best = column.compared and min(means) < max(means) == round(mean, column.decimals)
  return Best(text) if best else text


def _differing(panel):
  """The columns in which the first group and another have figures that may be compared."""
  return [column for column in panel.columns if column.compared and column.figures(0)
          and any(map(column.figures, range(1, len(panel.groups))))]


def _differences(panel):
  """Every group minus the first."""
  columns, rows = _differing(panel), []
  for i, group in enumerate(panel.groups[1:], 1):
    over_runs = min(len(group.runs), len(panel.groups[0].runs)) > 1
    rows.append([group.label, 'training runs' if over_runs else 'images', *(
        column.difference(i) if column.figures(i) else None for column in columns)])
  return Table(['config', 'interval over', *(column.title for column in columns)], rows)


def _runs(panel):
  paths = [each.path for group in panel.groups for each in group.runs]
  names, rows = iter(groups.folder_names(paths)), []
  for i, group in enumerate(panel.groups):
    for j, each in enumerate(group.runs):
      figures = [(column, column.values[i][j]) for column in panel.columns]
      rows.append([next(names), group.label, each.config.get('seed'), *(
          None if values is None else column.text(column.scale * float(np.mean(values)), np.nan)
          for column, values in figures)])
  return Table(['run', 'config', 'seed', *(column.title for column in panel.columns)], rows)


def _fields(panel, fields):
  """Fields of the groups' configs, the shorter of the two ways across."""
  cells = [[groups.value_text(field, group.config[field]) if field in group.config else None
            for group in panel.groups] for field in fields]
  labels = [group.label for group in panel.groups]
  if len(fields) < len(labels):
    return Table(['config', *fields], [list(row) for row in zip(labels, *cells)])
  return Table(['field', *labels], [[field, *row] for field, row in zip(fields, cells)])
