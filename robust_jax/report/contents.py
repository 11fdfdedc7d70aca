"""What a run has left in its folder, read once. A stage that has not run leaves None."""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robust_jax import analysis
from robust_jax.certification import log
from robust_jax.errors import UserError
from robust_jax.workdir import read_json, records

# In the folder of a sweep: {'runs': [{'workdir': its folder's name, 'point': {field: value}}]}.
SWEEP = 'sweep.json'
# A folder with one of these is a run's.
_FILES = ('config.json', 'stages.json', 'metrics.jsonl', 'radii.npz', 'attack.jsonl',
          'certify.jsonl', 'certify.tsv', 'sandwich.jsonl', 'bound.jsonl')


class Contents(NamedTuple):
  """The files of a run.

  Attributes:
    path: the folder.
    config: the resolved configuration, nested ({} if absent).
    record: command, versions, device, dataset, model ({} if absent).
    stages: {name: {'status', 'started', 'finished', 'seconds', ...}} ({} if absent).
    metrics: {'train' | 'validation' | 'test': list of dicts}, by step; a resume's repeated steps
      once.
    attack: `analysis.AttackLog`, or None.
    certified: `certification.log.Log`, or None.
    votes: its `certification.log.Votes`, or None.
    verified: what `--stages=verify` has left of it ({} if absent).
    checked: what `--stages=check` found of attacks ({} if absent).
    gallery: {name: array}, or None.
    radii: {name: array} of training that learns a radius for each example, or None.
    experiment: the name that a sweep's point gives its config, as 'trades'; '' without one.
    swept: whether it is a run of a sweep, whose folder has a number and no name.
    sandwich: `analysis.SandwichLog`, or None.
    bounded: `analysis.BoundLog`, or None.
    bounds_verified: what `--stages=verify` has left of it ({} if absent).
  """

  path: Path
  config: dict[str, Any]
  record: dict[str, Any]
  stages: dict[str, Any]
  metrics: dict[str, list[dict[str, Any]]]
  attack: analysis.AttackLog | None = None
  certified: log.Log | None = None
  votes: log.Votes | None = None
  verified: dict[str, Any] = {}
  checked: dict[str, Any] = {}
  gallery: dict[str, np.ndarray] | None = None
  radii: dict[str, np.ndarray] | None = None
  experiment: str = ''
  swept: bool = False
  sandwich: analysis.SandwichLog | None = None
  bounded: analysis.BoundLog | None = None
  bounds_verified: dict[str, Any] = {}

  @property
  def sigma(self):
    """Noise level of the smoothed classifier; None for a model without smoothing."""
    if self.certified and 'sigma' in self.certified.settings:
      return self.certified.settings['sigma'] or None
    if self.attack and 'sigma' in self.attack.header:
      return self.attack.header['sigma'] or None
    own = self.config.get('certify', {}).get('sigma')
    return (self.config.get('sigma') if own is None else own) or None

  @property
  def tested(self):
    """The test, in `metrics`, of the parameters that are judged: the last or the best.

    None without one. The best is chosen by what was held out of the training images; runs of before
    there was that chose it by the test split itself (`chosen_by_test`).
    """
    tests = {row['step']: row for row in self.metrics['test'] if 'accuracy' in row}
    if self.config.get('checkpoint') != 'best' or not tests:
      return max(tests.items(), default=(None, None))[1]
    chosen_by = self.metrics['validation'] or tests.values()
    step = max((row['accuracy'], row['step']) for row in chosen_by)[1]
    return tests.get(step)

  @property
  def chosen_by_test(self):
    """Whether the parameters were chosen by the test split on which they are then judged."""
    return (self.config.get('checkpoint') == 'best'
            and not self.config.get('data', {}).get('validation'))


def load(workdir) -> Contents:
  """Reads a workdir.

  Raises:
    UserError: no such folder, or a file in it is malformed.
  """
  path = Path(workdir)
  if not path.is_dir():
    raise UserError(f'workdir {path}: no such folder')
  read = lambda name, reader: reader(path / name) if (path / name).exists() else None
  certified = 'certify.jsonl' if (path / 'certify.jsonl').exists() else 'certify.tsv'
  return Contents(
      path, *(_json(path / f'{name}.json') for name in ('config', 'run', 'stages')),
      metrics=_metrics(path / 'metrics.jsonl'),
      attack=read('attack.jsonl', analysis.read_attack), certified=read(certified, log.read),
      votes=read(certified, log.read_votes), verified=_record(
          path / 'verify.json', 'finished', 'images', 'drawn_again', 'problems',
          'problems_in_table'),
      checked=_record(path / 'check.json', 'norm', 'epsilon', 'checks', 'curves', 'images'),
      gallery=read('gallery.npz', _arrays), radii=read('radii.npz', _arrays),
      sandwich=read('sandwich.jsonl', analysis.read_sandwich),
      bounded=read('bound.jsonl', analysis.read_bound), bounds_verified=_record(
          path / 'verify_bound.json', 'finished', 'images', 'made_again', 'problems'))


def is_sweep(folder) -> bool:
  """Whether a folder is that of a sweep, not of a run."""
  return (Path(folder) / SWEEP).is_file()


def runs_in(folder) -> list[Path]:
  """The runs directly in a folder that is none itself, in the order of their names."""
  folder = Path(folder)
  if is_run(folder) or not folder.is_dir():
    return []
  return sorted(path for path in folder.iterdir() if is_run(path))


def is_run(folder) -> bool:
  """Whether a folder has anything of a run."""
  return any((folder / name).is_file() for name in _FILES)


def load_all(folders) -> list[Contents]:
  """Reads several workdirs, each once; a folder of runs, as a sweep's, stands for all of them.

  Raises:
    UserError: no such folder, or a file in it is malformed.
  """
  names = {}  # {workdir: name of its experiment; None of a run that is no sweep's}
  for folder in map(Path, folders):
    if not is_sweep(folder):
      for run in runs_in(folder) or [folder]:
        names.setdefault(run, None)
      continue
    try:
      for run in _json(folder / SWEEP)['runs']:
        # configs/digits.py:trades is trades, configs/shaham.py is shaham.
        file, _, name = str(run.get('point', {}).get('config', '')).partition(':')
        names[folder / run['workdir']] = name or Path(file).stem
    except (KeyError, TypeError, AttributeError) as error:
      raise UserError(f'{folder / SWEEP} must name the workdir of each run, got '
                      f'{type(error).__name__} {error}') from error
  once = {path.resolve(): path for path in reversed(names)}
  return [load(path)._replace(experiment=names[path] or '', swept=names[path] is not None)
          for path in reversed(once.values())]


def _json(path):
  value = read_json(path) if path.exists() else {}
  if not isinstance(value, dict):
    raise UserError(f'{path} must hold a JSON object, got a {type(value).__name__}')
  return value


def _record(path, *names):
  """What the stage verify or check has left in a file that has its name; {} if it is absent."""
  record = _json(path)
  missing = {*names} - record.keys()
  if record and missing:
    raise UserError(f'{path}: no {min(missing)}, which --stages={path.stem} writes')
  return record


def _metrics(path):
  splits = {'train': {}, 'validation': {}, 'test': {}}

  def parse(line, number):
    row = records.parse_json(line, number)
    if not {'split', 'step'} <= row.keys():
      raise ValueError(f'must have split and step, got {records.short(line)}')
    return row

  for row in records.read(path, parse) if path.exists() else []:
    splits.setdefault(row['split'], {})[row['step']] = row
  return {split: [rows[step] for step in sorted(rows)] for split, rows in splits.items()}


def _arrays(path):
  try:
    with np.load(path) as file:
      return dict(file)
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    raise UserError(f'{path} must be an .npz of arrays ({error})') from error
