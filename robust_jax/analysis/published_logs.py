"""Where logs are, what is known of each, and whether several may be set side by side.

Our logs say in their settings what was certified. A published table says it by its path, as in
`cifar10/resnet110/noise_0.25/test/sigma_0.50`: dataset, noise in training, split, noise in
certification. The part of the path that is nearest to the file decides.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from robust_jax.analysis.certified import certified_accuracy, decided_radii, is_decided
from robust_jax.certification import log as logs
from robust_jax.errors import UserError

LOG_NAMES = ('certify.jsonl', 'certify.tsv')
_WORKDIR = {'config.json', 'stages.json'}
_DATASET = re.compile(r'(?<![a-z0-9])(tiny[-_]?imagenet|imagenet(?:32|64)?|fashion[-_]?mnist|mnist|'
                      r'svhn|digits|cifar[-_]?100|cifar[-_]?10)(?![a-z0-9])')
_SPLIT = re.compile(r'(?<![a-z])(train|test|validation|val)(?![a-z])')
_SIGMA, _NOISE = (re.compile(name + r'_(\d*\.?\d+)') for name in ('sigma', 'noise'))
# One dataset under two names.
_SAME = {'imagenet2012': 'imagenet', 'svhncropped': 'svhn'}
# Images of the split that published logs are of.
_SIZES = {'mnist': 10_000, 'fashionmnist': 10_000, 'cifar10': 10_000, 'cifar100': 10_000,
          'svhn': 26_032, 'tinyimagenet': 10_000, 'imagenet': 50_000}
# Settings that say which images and network, not how an image is certified.
FREE = {'seed', 'dataset', 'split', 'stride', 'num_images', 'num_classes', 'batch_size',
         'checkpoint_step', 'classifier_sha256', 'training_noise'}


# Those that the certifier has worked out of others, of sigma for one.
DERIVED = {'alpha_cap', 'alpha_anytime', 'cap_hits', 'noise_loss'}


class Source(NamedTuple):
  """A log and what is known of it; None where nothing says it.

  Attributes:
    path: the file.
    log: `certification.log.Log`.
    votes: `certification.log.Votes`.
    dataset: its name, as 'cifar10'.
    train_split: whether its images are of a train split; False where nothing says it.
    sigma: noise of the certified classifier, pixel units.
    training_noise: noise that its network was trained with, pixel units; 0: without noise.
    remarks: what a reader of its figures should know, each a line that names the file.
  """

  path: Path
  log: logs.Log
  votes: logs.Votes | None
  dataset: str | None
  train_split: bool
  sigma: float | None
  training_noise: float | None
  remarks: list[str]


def collect(paths: Sequence[str]) -> tuple[list[Source], list[str]]:
  """Reads logs: files, workdirs, and folders that are searched; each log once.

  A folder is searched with those in it, in the order of their names. Hidden files, what else a
  workdir holds, and a table beside the .jsonl of its name are passed over.

  Args:
    paths: files and folders.

  Returns:
    (sources, skipped): the logs, and a line about each thing in a folder that is none, or is
    damaged.

  Raises:
    UserError: no such path, a file named by itself that is malformed, a folder without a log.
  """
  sources, skipped, seen = [], [], set()
  for path in map(Path, paths):
    if path.is_dir():
      found, remarks = _search(path)
      skipped += remarks
    else:
      found = [load(path)]
    for source in found:
      if source.path.resolve() not in seen:
        seen.add(source.path.resolve())
        sources.append(source)
  return sources, skipped


def load(path) -> Source:
  """Reads one log, with what its settings, its workdir or its path say.

  Raises:
    UserError: no such file, or a malformed line, named as `file:line`.
  """
  path = Path(path)
  log = logs.read(path)
  absolute, settings = Path(os.path.abspath(path)), log.settings
  dataset = settings.get('dataset', _in_path(_DATASET, absolute))
  split = settings.get('split', _split_in_path(absolute))
  sigma = settings.get('sigma', _in_path(_SIGMA, absolute))
  return Source(
      path=path, log=log, votes=logs.read_votes(path),
      # Any images may be in a 'folder'.
      dataset=None if dataset in (None, 'folder') else _plain(str(dataset)),
      train_split=str(split).startswith('train'), sigma=_number(sigma),
      training_noise=_number(settings.get('training_noise', _in_path(_NOISE, absolute))),
      remarks=_remarks(path, log))


def check_dataset(sources: Sequence[Source]):
  """Raises UserError, naming two files, where logs are known to be of different datasets."""
  known = [source for source in sources if source.dataset is not None]
  for source in known[1:]:
    if source.dataset != known[0].dataset:
      raise UserError(f'{known[0].path} is of {known[0].dataset}, {source.path} of '
                      f'{source.dataset}; logs of one dataset are allowed')


def check_images(sources: Sequence[Source]):
  """Raises UserError, naming two files, where one idx does not mean one image in all logs."""
  check_dataset(sources)
  for source in sources[1:]:
    if source.train_split != sources[0].train_split:
      test, train = sorted([source, sources[0]], key=lambda each: each.train_split)
      raise UserError(f'{train.path} is of a train split, {test.path} is not; logs of one split '
                      'are allowed')
  other = other_labels(sources)
  if other:
    first, second, idx = other
    raise UserError(f'idx {idx} has one label in {first.path} and another in {second.path}; logs '
                    'that number the same images alike are allowed')


def other_labels(sources: Sequence[Source]) -> tuple[Source, Source, int] | None:
  """Two logs and an image that they give different labels; None where there is none.

  Then they are of different datasets, or number the images of one dataset differently.
  """
  seen = {}
  for source in sources:
    for idx, label in zip(source.log.idx.tolist(), source.log.label.tolist()):
      first, other = seen.setdefault((source.train_split, idx), (label, source))
      if first != label:
        return other, source, idx
  return None


def other_noise(source: Source) -> bool:
  """Whether a network is known to have been trained with another noise than that of the log."""
  known = None not in (source.sigma, source.training_noise)
  return known and source.sigma != source.training_noise


def stopped_early(sources: Sequence[Source]) -> list[str]:
  """Lines on published logs with fewer images than every stride-th one of their dataset."""
  groups = {}
  for source in sources:
    idx, size = np.sort(source.log.idx), _SIZES.get(source.dataset, 0)
    if len(idx) < 2 or source.train_split or source.log.settings:
      continue
    stride = _most_frequent(np.diff(idx))
    if idx[-1] + stride < size:
      groups.setdefault((len(idx), stride, source.dataset), []).append(source)
  return [f'{same[0].path}{_and_more(same)}: {num} of the {-(-_SIZES[dataset] // stride)} images '
          f'of {dataset} with idx 0, {stride}, {2 * stride}, ...'
          for (num, stride, dataset), same in groups.items()]


def mixed(sources: Sequence[Source]) -> list[str]:
  """A line, naming files, where logs are of different datasets, and of train and other splits."""
  return (_differing('dataset', [(source.dataset, source) for source in sources
                                 if source.dataset is not None])
          + _differing('split', [('train' if source.train_split else 'not train', source)
                                 for source in sources]))


def differences(sources: Sequence[Source]) -> list[str]:
  """A line for each setting that makes certificates of several logs differ, naming files.

  A table holds no settings. But where many of its images have its largest radius, every draw hit
  the class; this radius, in units of sigma, tells whether n and alpha are those of another log.
  """
  lines = []
  settings = [{name: value for name, value in source.log.settings.items()
               if name not in FREE | DERIVED}
              | ({} if source.sigma is None else {'sigma': source.sigma}) for source in sources]
  for name in dict.fromkeys(name for each in settings for name in each):
    of = [(each, source) for each, source in zip(settings, sources)
          if name in each or name == 'radii' and 'name' in each]
    lines += _differing(name, [(json.dumps(each.get(name, 'any')), source) for each, source in of])
  ceilings = sorted([(_ceiling(source), source.path) for source in sources if _ceiling(source)])
  if not any(line.startswith(('n ', 'alpha ')) for line in lines) and ceilings:
    (low, other), (high, path) = ceilings[0], ceilings[-1]
    if high > 1.01 * low:  # Published radii have three digits.
      lines.append(f'the largest radius is {high:.2f} sigma in {path}, {low:.2f} sigma in {other}: '
                   'n or alpha differs')
  return lines


def off_grid(sources: Sequence[Source], radii) -> list[str]:
  """A line for each log that has decided some radii only, and not all of these."""
  lines = []
  for source in sources:
    others = np.asarray(radii)[~is_decided(source.log, radii)]
    if not len(others):
      continue
    grid = decided_radii(source.log)
    between, beyond = others[others < grid.max()], others[others > grid.max()]
    lines.append(f'{source.path}: the radii {_listed(grid)} were decided'
                 + (f'; {_listed(between)}: at least the accuracy of the next larger one'
                    if len(between) else '')
                 + (f'; {_listed(beyond)}: nothing is known' if len(beyond) else ''))
  return lines


def ending(sources: Sequence[Source]) -> list[str]:
  """A line for each log that has a grid of radii, and certificates at the largest of them."""
  last = [None if decided_radii(source.log) is None else decided_radii(source.log)[-1]
          for source in sources]
  return [f'{source.path}: radii up to {radius:g} were decided, where its curve ends'
          for source, radius in zip(sources, last)
          if radius is not None and certified_accuracy(source.log, radius) > 0]


def comparable(sources: Sequence[Source], radii) -> list[bool]:
  """[num_radii + 1]: whether the accuracies at each radius, and the ACRs, mean the same for all.

  Those of logs with one grid do, or without any. Where grids differ, a radius has to be on all.
  """
  if len({json.dumps(source.log.settings.get('radii')) for source in sources}) == 1:
    return [True] * (len(radii) + 1)
  return [*np.all([is_decided(source.log, radii) for source in sources], axis=0).tolist(), False]


def names(paths: Sequence[Path]) -> tuple[str, list[str]]:
  """Short names that tell files apart.

  Args:
    paths: [num_paths] files; a log of a workdir goes by its folder.

  Returns:
    (folder, names): what is common to all paths in front, '' where nothing is; and the rest of
    each, with … for folders in the middle that all have.
  """
  whole = [path.parent if path.name in LOG_NAMES and path.parent.name else path for path in paths]
  whole = list(paths) if len(set(whole)) < len(whole) else whole
  try:
    common = os.path.commonpath([path.parent for path in whole])
  except ValueError:  # Some are absolute, others not.
    common = ''
  if len(whole) < 2 or not common:
    return '', [str(path) for path in whole]
  parts = [path.relative_to(common).parts for path in whole]
  shared = {i for i in range(-min(map(len, parts)) + 1, 0)
            if len({part[i] for part in parts}) == 1}
  return common, [_elided(part, shared) for part in parts]


def _elided(parts, shared):
  """A path whose parts at the (negative) places `shared` are …, once in a row."""
  texts = []
  for i, part in enumerate(parts, -len(parts)):
    text = '…' if i in shared and i < -1 else part
    if text != '…' or texts[-1:] != ['…']:
      texts.append(text)
  return '/'.join(texts)


# Finding.


def _search(folder):
  """(sources, skipped) of a folder and those in it."""
  found, damaged, others, visited = [], [], [], set()
  for root, folders, files in os.walk(folder, followlinks=True):
    root = Path(root)
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    if root.resolve() in visited:
      folders.clear()  # A link back.
      continue
    visited.add(root.resolve())
    if set(files) >= _WORKDIR:
      folders.clear()
      files = [name for name in LOG_NAMES if name in files][:1]
      others += [] if files else [f'{root} (a workdir without certificates)']
    for name in sorted(files):
      path = root / name
      twin = path.suffix == '.tsv' and _is_log(path.with_suffix('.jsonl'))
      if name.startswith('.') or twin:
        continue
      if not _is_log(path):
        others.append(str(path.relative_to(folder)))
        continue
      try:
        found.append(load(path))
      except UserError as error:
        damaged.append(str(error))
  if not found:
    there = damaged[0] if damaged else ', '.join(others[:3]) + ' ...' * (len(others) > 3)
    raise UserError(f'{folder}: no certification log in it ({there or "it is empty"}); a folder '
                    'with certify.jsonl, certify.tsv or published tables is allowed')
  if others:
    more = f' and {len(others) - 6} more' if len(others) > 6 else ''
    damaged.append(f'{folder}: {", ".join(others[:6])}{more}: no certification log')
  return found, damaged


def _is_log(path):
  """Whether a file begins as a log does."""
  try:
    if not path.is_file():
      return False
    with path.open('rb') as file:
      line = file.readline(1 << 16).decode('utf-8-sig', errors='replace').strip()
  except OSError:
    return False
  if path.suffix == '.jsonl':
    return line.startswith('{"header"') and '"settings"' in line
  return tuple(line.split('\t')) == logs.COLUMNS


# What is known.


def _in_path(pattern, path):
  """The last match in the part of a path that is nearest to the file; None without one."""
  for part in reversed(path.parts):
    matches = pattern.findall(part.lower())
    if matches:
      return matches[-1]
  return None


def _split_in_path(path):
  """A folder has the split's name itself, a file may have it among other words."""
  words = _SPLIT.findall(path.name.lower())
  folders = [part for part in path.parent.parts if _SPLIT.fullmatch(part.lower())]
  return [*folders, *words][-1] if folders or words else None


def _plain(name):
  name = re.sub('[-_]', '', name.lower())
  return _SAME.get(name, name)


def _number(value):
  try:
    return float(value)
  except (TypeError, ValueError):
    return None


def _is_finished(path):
  """Whether the certify stage of the workdir that a log is in, if it is in one, is done."""
  if path.name not in LOG_NAMES:
    return True
  try:
    stages = json.loads((path.parent / 'stages.json').read_text(encoding='utf-8'))
    return stages['certify']['status'] == 'done'
  except (OSError, ValueError, KeyError, TypeError):
    return True


def _remarks(path, log):
  remarks = []
  if logs.is_cut_off(path):
    remarks.append(f'{path}: the last line is cut off, and dropped')
  if not _is_finished(path):
    remarks.append(f'{path}: the certification is not finished ({len(log.idx)} images so far)')
  gaps = _gaps(np.sort(log.idx), log.settings.get('stride'))
  return remarks + [f'{path}: {gap}' for gap in gaps]


def _gaps(idx, stride):
  """A line where images of the pattern 0, stride, 2 stride, ... are missing in between.

  Without a stride that is known it is the one of most steps; irregular indices have no gaps.
  """
  steps = np.diff(idx)
  start = idx[0] if len(idx) else 0
  if type(stride) is int and stride > 0 and len(idx):
    start, steps = 0, np.diff(idx, prepend=-stride)
  elif len(steps) and 2 * np.sum(steps == _most_frequent(steps)) > len(steps):
    stride = _most_frequent(steps)
  else:
    return []
  missing = int(np.sum(steps // stride - 1))
  if np.any(steps % stride) or not missing:
    return []
  first = idx[np.argmax(steps > stride) - len(steps)] - steps[np.argmax(steps > stride)] + stride
  images = 'images' if missing > 1 else 'image'
  return [f'{missing} {images} of the pattern {start}, {start + stride}, {start + 2 * stride}, ... '
          f'missing (idx {first}{", ..." * (missing > 1)})']


def _most_frequent(values):
  values, counts = np.unique(values, return_counts=True)
  return values[np.argmax(counts)]


def _ceiling(source):
  """The largest radius in units of sigma, if at least one image in a hundred has it."""
  radius = source.log.radius
  if source.log.settings.get('name', 'fixed') != 'fixed':  # The grid or the looks end it.
    return None
  if not source.sigma or not len(radius) or np.sum(radius == radius.max()) < max(
      2, 0.01 * len(radius)):
    return None
  return radius.max() / source.sigma


def _differing(name, values):
  """[a line that names the first file of each value], [] where the values agree."""
  groups = {}
  for text, source in values:
    groups.setdefault(text, []).append(source)
  if len(groups) < 2:
    return []
  each = ', '.join(f'{text} in {same[0].path}{_and_more(same)}' for text, same in groups.items())
  return [f'{name} differs: {each}']


def _listed(radii):
  return ', '.join(f'{radius:g}' for radius in radii)


def _and_more(sources):
  return f' and {len(sources) - 1} more' if len(sources) > 1 else ''
