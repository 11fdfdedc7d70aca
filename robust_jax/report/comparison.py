"""The figures of several runs side by side; only like is set beside like.

Runs on different datasets are apart, logs are cut to the images that all of them have, and another
attack is another column.
"""

import json
from typing import Any, NamedTuple

import numpy as np

from robust_jax import analysis
from robust_jax.analysis.published_logs import DERIVED, FREE
from robust_jax.errors import UserError
from robust_jax.report import groups, results
from robust_jax.report.contents import Contents
from robust_jax.report.groups import Group

_MAX_RADII = 8


class Column(NamedTuple):
  """One figure of every run.

  Attributes:
    title: of the column.
    values: [group][run], each the values of the images that the figure is the mean of, one value
      where it is not a mean over images, or None where it was not measured.
    scale: what the mean is multiplied with to be shown.
    decimals: that are shown.
    compared: whether the figures may be compared, the largest being the best.
  """

  title: str
  values: list[list[np.ndarray | None]]
  scale: float = 100.
  decimals: int = 1
  compared: bool = True

  def figures(self, group: int) -> list[float]:
    """The figures of the runs of a group that were measured."""
    return [self.scale * float(np.mean(values)) for values in self.values[group]
            if values is not None]


class Panel(NamedTuple):
  """The runs on one dataset.

  Attributes:
    dataset: its name; '' if not known.
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
  measured = [run for run in runs if any(run.metrics.values()) or run.attack or run.certified]
  if not measured:
    raise UserError(f'{", ".join(str(run.path) for run in runs)}: nothing is measured yet; runs '
                    'that have begun are allowed')
  datasets = {}
  for run in measured:
    datasets.setdefault(_dataset(run), []).append(run)
  nothing = [f'{run.path}: nothing is measured yet; it is left out.' for run in runs
             if run not in measured]
  panels = [_panel(dataset, of_one) for dataset, of_one in datasets.items()]
  return [panels[0]._replace(notes=nothing + panels[0].notes), *panels[1:]]


def title(panels) -> str:
  """What is compared, in a phrase."""
  runs = sum(len(group.runs) for panel in panels for group in panel.groups)
  names = ' and '.join(panel.dataset or 'unnamed data' for panel in panels)
  configs = sum(len(panel.groups) for panel in panels)
  if runs == configs:
    return f'{runs} run{"s" if runs > 1 else ""} on {names}'
  return f'{runs} runs of {"one config" if configs == 1 else f"{configs} configs"} on {names}'


def _dataset(run):
  """The name of a run's test images: those of other names are not compared."""
  settings = run.config.get('data', {})
  name = run.record.get('dataset', {}).get('name') or settings.get('name', '')
  parts = [settings.get('data_dir') if name == 'folder' else None, settings.get('test_split')]
  return ' '.join([str(name), *(str(part) for part in parts if part)])


def _panel(dataset, runs):
  found = groups.group(runs)
  of_group = lambda values: [[values[run.path] for run in group.runs] for group in found]
  notes = []
  logs = {stage: {run.path: _finished(run, stage, log, notes) for run in runs}
          for stage, log in (('certify', 'certified'), ('attack', 'attack'))}
  certified, certified_alike = _on_common_images(of_group(logs['certify']), 'certified', notes)
  # Fewer draws certify smaller radii, whatever the network: such figures are not compared.
  certified_alike &= not _differing_certifiers(certified)
  attacked, attacked_alike = _on_common_images(of_group(logs['attack']), 'attacked', notes)
  columns = [
      *_clean(found, certified, certified_alike, attacked, attacked_alike),
      *_attacked(attacked, attacked_alike),
      *_certified(certified, certified_alike),
      *_training_time(found)]
  notes += _differing_settings(found, certified, attacked)
  return Panel(dataset, found, columns, certified, _by_attack(attacked), notes)


# What the runs have left, made comparable.


def _finished(run, stage, name, notes):
  """The log of a stage that is done, and has images; a note on any other that has begun."""
  log = getattr(run, name)
  if log is None or not len(log.idx):
    return None
  if run.stages.get(stage, {}).get('status', 'done') != 'done':
    notes.append(f'{run.path}: the {stage} stage is not finished; what it has measured so far is '
                 'left out.')
    return None
  return log


def _on_common_images(logs, what, notes):
  """([group][run] logs on the images that all have, whether there are any)."""
  present = [log for row in logs for log in row if log is not None]
  if not present:
    return logs, False
  idx = analysis.common_images(present)
  sizes = sorted({len(log.idx) for log in present})
  if not len(idx):
    notes.append(f'The runs have no {what} image in common: each figure is on the run\'s own '
                 'images, and they are not compared.')
    return logs, False
  if sizes != [len(idx)]:
    notes.append(f'Of {_listed(f"{size:,}" for size in sizes)} {what} images, the figures are on '
                 f'the {len(idx):,} that all runs have in common; so they may differ from those '
                 'of the runs\' own pages.')
  cut = [[None if log is None else analysis.on_images(log, idx) for log in row] for row in logs]
  labels = [log.label for row in cut for log in row if log is not None]
  if any((label != labels[0]).any() for label in labels):
    raise UserError(f'the runs differ in the labels of the {what} images; runs on the same '
                    'dataset are allowed')
  return cut, True


def _differing_settings(found, certified, attacked):
  notes = []
  for name in ('n', 'alpha'):
    values = sorted(value for value, in _settings_of(certified, (name,)) if value is not None)
    if len(values) > 1:
      notes.append(f'The certificates differ in {name} '
                   f'({_listed(f"{value:,}" for value in values)}), which alone changes the radii '
                   'that can be certified: they stand side by side, without differences or a '
                   'best value.')
  others = [name for name in _differing_certifiers(certified) if name not in ('n', 'alpha')]
  if others:
    notes.append(f'The certificates differ in {_listed(others)}, which is another question: they '
                 'stand side by side, without differences or a best value.')
  headers = [log.header for row in attacked for log in row if log is not None]
  for name in ('num_noise', 'n', 'alpha'):
    values = sorted({one[name] for one in headers if one.get('smoothed') and name in one})
    if len(values) > 1:
      notes.append(f'The attacks on smoothed classifiers differ in {name} '
                   f'({_listed(f"{value:,}" for value in values)}).')
  if len({tuple(sorted(header['epsilons'])) for header in headers}) > 1:
    notes.append('The attacks measured different radii. An image counts at ε if it is right at '
                 'every smaller ε measured as well, so a longer list is a little stricter.')
  logs = [log for row in certified for log in row if log is not None]
  if any(analysis.decided_radii(log) is not None for log in logs):
    notes.append('Where only the radii of a grid were tested, the ACR is a lower bound: every '
                 'certified radius is rounded down to one of them.')
  devices = {results.device_text(run) for group in found for run in group.runs
             if 'device' in {**run.record, **run.stages.get('train', {})}}
  if len(devices) > 1:
    notes.append(f'Training ran on different devices ({_listed(sorted(devices))}): its times do '
                 'not compare.')
  return notes


def _differing_certifiers(certified):
  """The names of the settings by which the certificates differ, the noise's sigma apart.

  What the certifier has worked out for sigma says nothing more. A name that a log lacks is not
  known there, but for the radii: without them any radius is certified.
  """
  logs = [log for row in certified for log in row if log is not None]
  names = dict.fromkeys(name for log in logs for name in log.settings)
  return [name for name in names if name not in FREE | DERIVED | {'sigma'} and len({
      json.dumps(log.settings.get(name)) for log in logs
      if name in log.settings or name == 'radii'}) > 1]


def _settings_of(certified, names):
  return {tuple(log.settings.get(name) for name in names)
          for row in certified for log in row if log is not None}


def _listed(words):
  *most, last = words
  return f'{", ".join(most)} and {last}' if most else last


def _by_attack(attacked):
  """{what was done: [group][run] logs}; another norm or number of draws is another attack."""
  key = lambda log: json.dumps(_attack_settings(log), sort_keys=True)
  names = {key(log): log for row in attacked for log in row if log is not None}
  # The same words for two attacks are told apart by what differs, as configs are.
  settings = [groups.flat(_attack_settings(log)) for log in names.values()]
  differ = [field for field in groups.differing(settings) if field not in ('name', 'norm')]
  result = {}
  for (one, log), setting in zip(names.items(), settings):
    details = ''.join(f', {field}={groups.value_text(field, setting[field])}' for field in differ
                      if setting.get(field) is not None)
    name = f'{results.attack_name(log)} {results.norm(log)}{details}'
    result[name] = [[log if log is not None and key(log) == one else None for log in row]
                    for row in attacked]
  return result


def _attack_settings(log):
  drawn = ('num_noise', 'n', 'alpha') if log.header.get('smoothed') else ()
  return {**log.header.get('attack', {}), **{name: log.header.get(name) for name in drawn}}


# Columns.


def _clean(found, certified, certified_alike, attacked, attacked_alike):
  """Accuracy without attack, from the source that most groups have: the same one for all."""
  tests = [[_test_accuracy(run) for run in group.runs] for group in found]
  sources = [
      Column('clean', _map(lambda log: log.correct, certified), compared=certified_alike),
      Column('clean', _map(lambda log: log.clean == log.label, attacked),
             compared=attacked_alike),
      Column('test', tests)]
  count = lambda column: sum(bool(column.figures(i)) for i in range(len(found)))
  best = max(sources, key=count)  # The first of equals.
  return [best] if count(best) else []


def _test_accuracy(run):
  """The accuracy of the parameters that are attacked and certified: the last, or the best."""
  accuracies = [row['accuracy'] for row in run.metrics['test'] if 'accuracy' in row]
  done = run.stages.get('train', {}).get('status', 'done') == 'done'
  if not (accuracies and done):
    return None
  best = run.config.get('checkpoint') == 'best'
  return np.array([max(accuracies) if best else accuracies[-1]])


def _attacked(attacked, alike):
  columns = []
  for name, logs in _by_attack(attacked).items():
    epsilons = sorted({epsilon for row in logs for log in row if log is not None
                       for epsilon in log.epsilons.tolist() if epsilon > 0})
    columns += [Column(f'{name} {results.epsilon_text(epsilon)}',
                       _map(lambda log, epsilon=epsilon: _robust_at(log, epsilon), logs),
                       compared=alike) for epsilon in epsilons]
  return columns


def _robust_at(log, epsilon):
  found = np.flatnonzero(log.epsilons == epsilon)
  return analysis.robust(log)[:, found[0]] if len(found) else None


def _certified(certified, alike):
  logs = [log for row in certified for log in row if log is not None]
  if not logs:
    return []
  at = lambda radius: _map(lambda log: analysis.certified_images(log, radius)
                           if analysis.is_decided(log, radius) else None, certified)
  return [*(Column(f'certified {radius:g}', at(radius), compared=alike)
            for radius in radii(logs)),
          Column('ACR', _map(lambda log: log.correct * log.radius, certified), scale=1.,
                 decimals=3, compared=alike)]


def radii(logs):
  """The radii that were decided, and round ones up to the largest certified of logs without a grid.

  At most `_MAX_RADII`, without zero.
  """
  grids = [analysis.decided_radii(log) for log in logs]
  free = [log for log, grid in zip(logs, grids) if grid is None and log.radius.any()]
  if free:
    grids.append(results.radius_grid(max(free, key=lambda log: log.radius.max())))
  found = np.unique(np.round(np.concatenate(
      [[0.], *(grid for grid in grids if grid is not None)]), 9))
  while len(found) - 1 > _MAX_RADII:
    found = found[::2]
  return found[1:].tolist()


def _training_time(found):
  seconds = [[run.stages.get('train', {}).get('seconds') if run.stages.get('train', {}).get(
      'status') == 'done' else None for run in group.runs] for group in found]
  known = [value for row in seconds for value in row if value is not None]
  if not known:
    return []
  unit, length = next((unit, length) for unit, length in (('h', 3600), ('min', 60), ('s', 1))
                      if max(known) >= 2 * length or length == 1)
  values = [[None if value is None else np.array([value]) for value in row] for row in seconds]
  return [Column(f'training ({unit})', values, scale=1 / length, compared=False)]


def _map(function, logs):
  return [[None if log is None else function(log) for log in row] for row in logs]
