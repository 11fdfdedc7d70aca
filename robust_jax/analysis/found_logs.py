"""Finds certification logs, ours and published ones, and what is known of each.

Our logs say in their settings what was certified. A published table says it by its path, as in
`cifar10/noise_0.25/test/sigma_0.50`: noise in training, split, noise in certification. The part of
the path that is nearest to the file decides, unless the caller knows better.
"""

import json
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robust_jax.analysis.certified import decided_radii, is_decided
from robust_jax.analysis.comparison import differing_settings, other_label
from robust_jax.certification import log as logs
from robust_jax.errors import UserError
from robust_jax.workdir import records

LOG_NAMES = ('certify.jsonl', 'certify.jsonl.gz', 'certify.tsv', 'certify.tsv.gz')
_WORKDIR = {'config.json', 'stages.json'}
_SPLITS = ('train', 'test', 'val', 'validation')


class FoundLog(NamedTuple):
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


def collect(paths: Sequence[str],
            given: dict[str, Any] | None = None) -> tuple[list[FoundLog], list[str]]:
  """Reads logs: files, workdirs, and folders that are searched; each log once.

  A folder is searched with those in it, in the order of their names. Hidden files, what else a
  workdir holds, a table beside the .jsonl of its name, and what is there uncompressed as well are
  passed over.

  Args:
    paths: files and folders.
    given: {'dataset' or 'sigma': value} of published tables.

  Returns:
    (logs, skipped): the logs, and a line about each thing in a folder that is none, or is
    damaged.

  Raises:
    UserError: no such path, a file named by itself that is malformed, a folder without a log.
  """
  once, skipped = {}, []
  for path in map(Path, paths):
    found, remarks = _search(path, given) if path.is_dir() else ([load(path, given)], [])
    skipped += remarks
    for one in found:
      once.setdefault(one.path.resolve(), one)
  return list(once.values()), skipped


def load(path, given=None) -> FoundLog:
  """Reads one log, with what its settings, its path or `given` say; see `collect`.

  Raises:
    UserError: no such file, or a malformed line, named as `file:line`.
  """
  path, log = Path(path), logs.read(path)
  *folders, name = (part.lower() for part in Path(os.path.abspath(path)).parts)
  splits = [part for part in [*folders, *re.split('[^a-z]', name)] if part in _SPLITS]
  known = {'split': splits[-1] if splits else ''}
  for field, word in (('sigma', 'sigma'), ('training_noise', 'noise')):
    numbers = re.findall(rf'{word}_(\d*\.?\d+)', '/'.join([*folders, name]))
    known |= {field: float(numbers[-1])} if numbers else {}
  known |= {**(given or {}), **log.settings}
  # Any images may be in a 'folder' or a file .npz.
  dataset = str(known.get('dataset') or 'folder')
  dataset = None if dataset == 'folder' or dataset.endswith('.npz') else dataset
  number = lambda value: float(value) if isinstance(value, int | float) else None
  return FoundLog(
      path=path, log=log, votes=logs.read_votes(path),
      dataset=dataset,
      train_split=str(known['split']).startswith('train'), sigma=number(known.get('sigma')),
      training_noise=number(known.get('training_noise')), remarks=_remarks(path, log))


def check_alike(found: Sequence[FoundLog], *, same_images=True) -> list[str]:
  """A line for each split in which the logs of one dataset number its images differently.

  Args:
    found: the logs.
    same_images: whether one idx has to be one image in all of them.

  Raises:
    UserError: logs are of different datasets, or may be as labels differ; with `same_images` also
      where splits or labels differ. It names two files.
  """
  known = [one for one in found if one.dataset is not None]
  for one in known[1:]:
    if one.dataset != known[0].dataset:
      raise UserError(f'the logs must be of one dataset, got {known[0].path} of '
                      f'{known[0].dataset}, {one.path} of {one.dataset}')
  splits = [[one for one in found if one.train_split == split]
            for split in (True, False)]
  if same_images and all(splits):
    raise UserError(f'the logs must be of one split, got {splits[0][0].path} of a train split, '
                    f'{splits[1][0].path} of another')
  lines = []
  for same in splits:
    other = other_label([one.log for one in same])
    if other:
      first, second, idx = other
      lines.append(f'idx {idx} has one label in {same[first].path} and another in '
                   f'{same[second].path}; they number the images differently')
      if same_images or len(known) < len(found):
        raise UserError(f'{lines[0]}, or are of different datasets')
  return lines


def other_noise(one: FoundLog) -> bool:
  """Whether a network is known to have been trained with another noise than that of the log."""
  known = None not in (one.sigma, one.training_noise)
  return known and one.sigma != one.training_noise


def stopped_early(found: Sequence[FoundLog]) -> list[str]:
  """Lines on published logs that end before others with the same distance between images."""
  kind = lambda one: (_distance(one.log.idx), one.train_split)
  tables = [one for one in found if len(one.log.idx) > 1 and not one.log.settings]
  ends = {}
  for one in tables:
    ends[kind(one)] = max(ends.get(kind(one), 0), one.log.idx.max())
  return [f'{one.path}: {len(one.log.idx)} images, up to idx {one.log.idx.max()}; '
          f'other logs go up to {ends[kind(one)]}' for one in tables
          if one.log.idx.max() < ends[kind(one)]]


def differences(found: Sequence[FoundLog]) -> list[str]:
  """A line for each setting by which certificates of several logs differ, naming files.

  And for dataset and split, where logs are not of the same.
  """
  lines = []
  for name, values in (
      ('dataset', [one.dataset for one in found]),
      ('split', ['train' if one.train_split else 'not train' for one in found])):
    numbers = {value: [i for i, each in enumerate(values) if each == value]
               for value in values if value is not None}
    lines += [_differs(name, numbers, found)] if len(numbers) > 1 else []
  settings = [{**one.log.settings, **({} if one.sigma is None else {'sigma': one.sigma})}
              for one in found]
  return lines + [_differs(name, values, found)
                  for name, values in differing_settings(settings).items()]


def off_grid(found: Sequence[FoundLog], radii) -> list[str]:
  """A line for each log that has decided some radii only, and not all of these."""
  lines, listed = [], lambda radii: ', '.join(f'{radius:g}' for radius in radii)
  for one in found:
    others = np.asarray(radii)[~is_decided(one.log, radii)]
    if len(others):
      grid = decided_radii(one.log)
      lines.append(f'{one.path}: the radii {listed(grid)} were decided' + ''.join(
          f'; {listed(some)}: {known}' for some, known in (
              (others[others < grid[-1]], 'at least the accuracy of the next larger one'),
              (others[others > grid[-1]], 'nothing is known')) if len(some)))
  return lines


def comparable(found: Sequence[FoundLog], radii) -> list[bool]:
  """[num_radii + 1]: whether the accuracies at each radius, and the ACRs, mean the same for all.

  Those of logs with one grid do, or without any. Where grids differ, a radius has to be on all.
  """
  if len({json.dumps(one.log.settings.get('radii')) for one in found}) == 1:
    return [True] * (len(radii) + 1)
  return [*np.all([is_decided(one.log, radii) for one in found], axis=0).tolist(), False]


def names(paths: Sequence[Path]) -> tuple[str, list[str]]:
  """(folder, names): the folder that all files are in, '' without one, and the paths from there.

  A log of a workdir goes by its folder.
  """
  whole = [path.parent if path.name in LOG_NAMES and path.parent.name else path for path in paths]
  whole = list(paths) if len({*whole}) < len(whole) else whole
  try:
    common = os.path.commonpath([path.parent for path in whole])
  except ValueError:  # Some are absolute, others not.
    common = ''
  if len(whole) < 2 or not common:
    return '', [str(path) for path in whole]
  return common, [str(path.relative_to(common)) for path in whole]


def _search(folder, given):
  """(logs, skipped) of a folder and those in it."""
  found, damaged, others = [], [], []
  for root, folders, files in os.walk(folder):
    root = Path(root)
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    if {*files} >= _WORKDIR:
      folders.clear()
      files = [name for name in LOG_NAMES if name in files][:1]
      others += [] if files else [f'{root} (a workdir without certificates)']
    for path in sorted(root / name for name in files if not name.startswith('.')):
      plain = records.stem(path)
      better = [plain.with_suffix(end) for end in ('.jsonl', '.jsonl.gz') if plain.suffix == '.tsv']
      better += [plain] if plain != path else []
      if any(map(_is_log, better)):
        continue
      if not _is_log(path):
        others.append(str(path.relative_to(folder)))
        continue
      try:
        found.append(load(path, given))
      except UserError as error:
        damaged.append(str(error))
  if not found:
    there = damaged[0] if damaged else ', '.join(others[:3]) + ' ...' * (len(others) > 3)
    raise UserError(f'{folder} must have a certify.jsonl, certify.tsv or published tables in it, '
                    f'got {there or "an empty folder"}')
  if others:
    more = f' and {len(others) - 6} more' if len(others) > 6 else ''
    damaged.append(f'{folder}: {", ".join(others[:6])}{more}: no certification log')
  return found, damaged


def _is_log(path):
  """Whether a file begins as a log does."""
  try:
    with records.open_text(path) as file:
      line = file.readline(1 << 16).strip()
  except (OSError, EOFError, zlib.error):
    return False
  if records.stem(path).suffix == '.jsonl':
    return line.startswith('{"header"') and '"settings"' in line
  return tuple(line.split('\t')) == logs.COLUMNS


def _remarks(path, log):
  remarks = ['the last line is cut off, and dropped'] if logs.is_cut_off(path) else []
  if path.name in LOG_NAMES and not _is_finished(path.parent / 'stages.json'):
    remarks.append(f'the certification is not finished ({len(log.idx)} images so far)')
  remarks += _gaps(log.idx, log.settings.get('stride'))
  return [f'{path}: {remark}' for remark in remarks]


def _is_finished(path):
  """Whether the certify stage of a workdir is done; True where nothing says that it is not."""
  try:
    return json.loads(path.read_text(encoding='utf-8'))['certify']['status'] == 'done'
  except (OSError, ValueError, KeyError, TypeError):
    return True


def _gaps(idx, stride):
  """A line where images of the pattern 0, stride, 2 stride, ... are missing in between.

  Without a stride that is known it is the largest that fits; irregular indices have no gaps.
  """
  if len(idx) < 2:
    return []
  start, step = (0, stride) if stride else (int(idx.min()), _distance(idx))
  missing = np.setdiff1d(np.arange(start, idx.max(), step), idx)
  if not len(missing) or (not stride and len(missing) > len(idx)):
    return []
  return [f'{len(missing)} image{"s" if len(missing) > 1 else ""} of the pattern {start}, '
          f'{start + step}, {start + 2 * step}, ... missing '
          f'(idx {missing[0]}{", ..." * (len(missing) > 1)})']


def _distance(idx):
  """The largest distance of which all distances between images are multiples."""
  return int(np.gcd.reduce(np.diff(np.sort(idx))))


def _differs(name, values, found):
  """A line that names the first file of each value; values: {value: numbers of the logs}."""
  each = ', '.join(
      f'{value} in {found[numbers[0]].path}'
      + (f' and {len(numbers) - 1} more' if len(numbers) > 1 else '')
      for value, numbers in values.items())
  return f'{name} differs: {each}'
