"""The one reader and writer of certification logs.

`certify.jsonl` is the log: its first line holds the settings and the environment, every other line
one image with its vote counts, or the environment of a resume. `certify.tsv` is made from it when
the stage ends: the table that other certification code reads and writes, with the tab-separated
columns `idx label predict radius correct time`.
"""

import contextlib
import datetime
import decimal
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robust_jax import types
from robust_jax.errors import UserError
from robust_jax.workdir import records as files

COLUMNS = ('idx', 'label', 'predict', 'radius', 'correct', 'time')
ABSTAIN = -1


class Log(NamedTuple):
  """A certification log, one entry per image in the order of the file.

  Attributes:
    idx: [num_images] int64, the image's position in its split.
    label: [num_images] int64.
    predict: [num_images] int64, -1 where the smoothed classifier abstained.
    radius: [num_images] float64, the certified l2 radius in pixel units.
    correct: [num_images] bool, predict == label.
    time: [num_images] float64, seconds spent on the image.
    settings: what was certified and how ({} from a table, which holds none).
    environments: the environments that wrote the log, first to last ([] from a table).
  """

  idx: np.ndarray
  label: np.ndarray
  predict: np.ndarray
  radius: np.ndarray
  correct: np.ndarray
  time: np.ndarray
  settings: dict[str, Any]
  environments: list[dict[str, Any]]


class Votes(NamedTuple):
  """The vote counts of a log, one row per image in the order of the file.

  Attributes:
    counts0: [num_images, num_classes] int64, the draws that selected the class.
    counts: [num_images, num_classes] int64, the draws that bounded its probability.
  """

  counts0: np.ndarray
  counts: np.ndarray


def read(path) -> Log:
  """Reads a log: JSON lines where the name ends in `.jsonl`, else a tab-separated table.

  Either may be compressed, `.jsonl.gz`. An empty file has no rows. A last line that a crash left
  unfinished is dropped.

  Args:
    path: the file; times may be `h:mm:ss.ffffff` or seconds.

  Raises:
    UserError: no such file, a malformed line, or an image that occurs twice, named as `file:line`.
  """
  path = Path(path)
  rows, settings, environments, lines = [], {}, [], {}
  for number, entry in enumerate(files.read(path, _parser(path)), 1):
    if 'header' in entry:
      settings = entry['header']['settings']
      environments.append(entry['header']['environment'])
    elif 'environment' in entry:
      environments.append(entry['environment'])
    elif entry:
      rows.append(_row(entry))
      first = lines.setdefault(rows[-1][0], number)
      if first != number:
        raise UserError(f'{path}:{number}: idx {rows[-1][0]} occurs more than once (first in line '
                        f'{first})')
  columns = list(zip(*rows)) or [()] * len(COLUMNS)
  kinds = (np.int64, np.int64, np.int64, np.float64, bool, np.float64)
  return Log(*(np.array(column, kind) for column, kind in zip(columns, kinds)),
             settings, environments)


def read_votes(path) -> Votes | None:
  """Reads the vote counts of a log.

  Returns:
    `Votes`, or None where the file is a table, has no images, or has one without counts0 and
    counts.

  Raises:
    UserError: as `read`; counts that are not integers >= 0, one a class.
  """
  path = Path(path)
  if files.stem(path).suffix != '.jsonl':
    return None
  entries = read_entries(path)
  if not entries or not all({'counts0', 'counts'} <= entry.keys() for entry in entries):
    return None
  num_classes = None
  for entry in entries:
    for name in ('counts0', 'counts'):
      values = entry[name]
      good = (isinstance(values, list) and values
              and all(type(value) is int and value >= 0 for value in values))
      num_classes = len(values) if good and num_classes is None else num_classes
      if not good or len(values) != num_classes:
        raise UserError(f'{path}: idx {entry["idx"]}: {name} must be integers >= 0, one a class, '
                        f'got {files.short(str(values))}')
  votes = np.array([[entry['counts0'], entry['counts']] for entry in entries], np.int64)
  return Votes(*np.moveaxis(votes, 1, 0))


def read_entries(path) -> list[dict[str, Any]]:
  """The lines of the images of a log of JSON lines, all fields, in the order of the file.

  Raises:
    UserError: as `read`.
  """
  return [entry for entry in files.read(path, _parse_json)
          if not entry.keys() & {'header', 'environment'}]


def is_cut_off(path) -> bool:
  """Whether the last line was never written to its end, so that `read` drops it.

  Raises:
    UserError: as `read`.
  """
  return files.is_cut_off(path, _parser(Path(path)))


class Writer:
  """An open log; see `open_for_append`.

  Attributes:
    done: the indices of the images that are already in the log.
    begun: {index: dict} of images that are unfinished, as `write` was given them.
  """

  def __init__(self, stem, settings, environment):
    self._path, self._progress = Path(f'{stem}.jsonl'), Path(f'{stem}.progress.json')
    self._settings = settings
    log = read(self._path)
    self.done = set(log.idx.tolist())
    self.begun = self._read_progress()
    # Still to be recorded, or None.
    self._environment = None if environment == log.environments[-1] else environment

  def write(self, records: Iterable[dict[str, Any]], unfinished: Iterable[dict[str, Any]] = ()):
    """Appends images to the log and waits until the disk has them.

    Args:
      records: dicts with at least the columns of the table (time in seconds), as `records` makes
        them. NumPy values are fine.
      unfinished: dicts with idx of all images that are unfinished now, for `begun` of a resume.

    Raises:
      ValueError: an image is in the log already, or a field is missing or out of range.
    """
    entries = [files.plain(record) for record in records]
    new = [_row(entry)[0] for entry in entries]
    if len(set(new)) < len(new) or not self.done.isdisjoint(new):
      raise ValueError(f'idx must be of images that are not in the log yet, each once, got {new}')
    begun = {entry['idx']: entry for entry in map(files.plain, unfinished)}
    if (entries or begun) and self._environment is not None:
      entries.insert(0, {'environment': self._environment})
      self._environment = None
    if entries:
      files.append(self._path, *entries)
      self.done.update(new)
    if begun:
      files.write_bytes(self._progress, json.dumps(
          {'settings': self._settings, 'images': list(begun.values())}).encode())
    else:
      self._progress.unlink(missing_ok=True)
    self.begun = begun

  def _read_progress(self):
    """{index: dict} of the unfinished images; {} where the file is not of a log like this one."""
    if not self._progress.exists():
      return {}
    try:
      saved = files.read_json(self._progress)
      # A crash may have come after the log was written and before this file was.
      images = {entry['idx']: entry for entry in saved['images'] if entry['idx'] not in self.done}
      return images if saved['settings'] == self._settings else {}
    except (KeyError, TypeError, UserError) as error:
      raise UserError(f'{self._progress} cannot be read ({type(error).__name__}: {error}); without '
                      'the file, its images are begun anew') from error


@contextlib.contextmanager
def open_for_append(stem, settings, environment) -> Iterator[Writer]:
  """Creates the log `stem`.jsonl, or opens it to add images; at the end makes `stem`.tsv from it.

  An unfinished last line is cut off. Another environment than the last one is recorded before the
  first image that it adds or draws for.

  Args:
    stem: the path without an ending, as in `runs/mnist/certify`.
    settings: dict of everything that a certificate depends on.
    environment: dict of what may change between resumes: versions, device, flags.

  Yields:
    A `Writer`.

  Raises:
    UserError: the log has other settings (each difference is named), or is malformed.
  """
  path, table = Path(f'{stem}.jsonl'), Path(f'{stem}.tsv')
  settings, environment = files.plain(settings), files.plain(environment)
  path.parent.mkdir(parents=True, exist_ok=True)
  new = not path.exists() or not read(path).environments
  if new and table.exists() and len(read(table).idx):
    raise UserError(f'{table} has images but no {path.name} beside it; move it away or choose '
                    'another workdir')
  header = {'header': {'settings': settings, 'environment': environment}}
  saved = files.resume(path, header, parse=_parse_json)[0]['header']['settings']
  check_settings(path, saved, settings)
  try:
    yield Writer(stem, saved, environment)
  finally:
    files.write_bytes(table, export(path).encode())


def export(path) -> str:
  """The table that is made from the JSON lines in file `path`."""
  rows = zip(*(column.tolist() for column in read(path)[:len(COLUMNS)]))
  return '\t'.join(COLUMNS) + '\n' + ''.join(map(_table_line, rows))


def records(idx, labels, certificate: types.Certificate, seconds) -> list[dict[str, Any]]:
  """The records of a batch of certificates, for `Writer.write`.

  Args:
    idx: [batch] positions in the split.
    labels: [batch].
    certificate: [batch] in every field, arrays or lists; fields beyond `types.Certificate`'s are
      logged too.
    seconds: seconds an image took: a scalar or [batch].
  """
  columns = {
      'idx': idx,
      'label': labels,
      'predict': certificate.prediction,
      'radius': certificate.radius,
      'correct': (np.asarray(certificate.prediction) == np.asarray(labels)).astype(int),
      'time': np.broadcast_to(np.asarray(seconds, float), np.shape(idx)),
      **certificate._asdict(),
  }
  del columns['prediction']
  lists = [column if isinstance(column, list) else np.asarray(column).tolist()
           for column in columns.values()]
  return [dict(zip(columns, row)) for row in zip(*lists)]


def check_settings(path, logged, settings):
  """Raises UserError, naming each difference, unless the settings of the log `path` are these.

  The noise of the training is no setting of the certificates: a log need not have it.
  """
  without = lambda values: {k: v for k, v in values.items() if k != 'training_noise'}
  files.check_same(path, without(logged), without(settings))


# Lines.


def _parser(path):
  return _parse_json if files.stem(path).suffix == '.jsonl' else _parse_table


def _parse_table(line, number):
  values = line.split('\t')
  if number == 1:
    if tuple(values) != COLUMNS:
      error = ValueError if '\t'.join(COLUMNS).startswith(line) else files.NoHeaderError
      raise error(f'the title must be {" ".join(COLUMNS)}, got {files.short(line)}')
    return {}
  if len(values) != len(COLUMNS):
    raise ValueError(f'must be {len(COLUMNS)} values between tabs, got {files.short(line)}')
  entry = dict(zip(COLUMNS, values))
  _row(entry)
  return entry


def _parse_json(line, number):
  entry = files.parse_header(line) if number == 1 else files.parse_json(line, number)
  if number == 1 or 'header' in entry:
    header = entry.get('header')
    if number > 1 or not _has_dicts(header, 'settings', 'environment'):
      raise files.NoHeaderError('the first line, and no other, must be a header with settings and '
                                f'environment, got {files.short(line)}')
  elif 'environment' in entry:
    if not _has_dicts(entry, 'environment'):
      raise ValueError(f'environment must have names and values, got {files.short(line)}')
  else:
    _row(entry)
  return entry


def _has_dicts(value, *names):
  return isinstance(value, dict) and all(isinstance(value.get(name), dict) for name in names)


def _seconds(text):
  clock = re.fullmatch(r'(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)', text)
  if clock is None:
    return float(text)
  days, hours, minutes, seconds = clock.groups(default='0')
  return ((int(days) * 24 + int(hours)) * 60 + int(minutes)) * 60 + float(seconds)


# Column: how its text is read, the least value, and what it must be, in words.
_FIELDS = {
    'idx': (int, 0, 'an integer >= 0'),
    'label': (int, 0, 'an integer >= 0'),
    'predict': (int, ABSTAIN, f'an integer >= 0, or {ABSTAIN} (abstains)'),
    'radius': (float, 0, 'a finite number >= 0'),
    'correct': (int, 0, '1 where predict equals label, else 0'),
    'time': (_seconds, 0, 'h:mm:ss or seconds >= 0'),
}


def _row(entry):
  """The values of one image, in the order of COLUMNS; ValueError at the first that is not valid."""
  row = {}
  for name, (parse, low, expected) in _FIELDS.items():
    text = str(entry.get(name, ''))
    try:
      value = parse(text)
    except ValueError:
      value = math.nan
    good = math.isfinite(value) and value >= low
    if name == 'correct' and good:
      good = value == (row['predict'] == row['label'])
    if not good:
      raise ValueError(f'{name} must be {expected}, got {files.short(text)}')
    row[name] = value
  return tuple(row.values())


def _table_line(row):
  idx, label, predict, radius, correct, time = row
  # Rounded down: the table, read back, may never claim more than was certified.
  radius = decimal.Decimal(str(radius)).quantize(decimal.Decimal('1e-5'), decimal.ROUND_DOWN)
  time = datetime.timedelta(seconds=time)
  return f'{idx}\t{label}\t{predict}\t{radius}\t{int(correct)}\t{time}\n'
