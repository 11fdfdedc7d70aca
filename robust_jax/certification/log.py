"""The one reader and writer of certification logs.

A log is a pair of twins. `certify.jsonl` is the truth: its first line holds the settings and the
environment, every other line one image with its vote counts, or the environment of a resume.
`certify.tsv` is the table other certification code reads and writes (`idx label predict radius
correct time`, tab-separated), kept beside it line for line.
"""

import contextlib
import datetime
import decimal
import functools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robust_jax import types
from robust_jax.errors import UserError

COLUMNS = ('idx', 'label', 'predict', 'radius', 'correct', 'time')
ABSTAIN = -1
_TITLE = '\t'.join(COLUMNS) + '\n'


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

  An empty file has no rows. A last line that a crash left unfinished is dropped (see
  `is_cut_off`).

  Args:
    path: the file; times may be `h:mm:ss.ffffff` or seconds.

  Raises:
    UserError: no such file, a malformed line, or an image that is there twice, named as
      `file:line`.
  """
  path = Path(path)
  rows, settings, environments, lines = [], {}, [], {}
  for where, _, entry in _entries(path, _parser(path)):
    if 'header' in entry:
      settings = entry['header']['settings']
      environments.append(entry['header']['environment'])
    elif 'environment' in entry:
      environments.append(entry['environment'])
    else:
      rows.append(_row(entry, where))
      idx = rows[-1][0]
      if lines.setdefault(idx, where) != where:
        raise UserError(f'{where}: idx {idx} occurs more than once (first in line '
                        f'{lines[idx].rpartition(":")[2]}); one line an image is allowed')
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
    UserError: as `read`; counts that are no integers >= 0, one a class.
  """
  path = Path(path)
  if not _is_json(path):
    return None
  rows, num_classes = [], None
  for where, _, entry in _entries(path, _parse_json):
    if entry.keys() & {'header', 'environment'}:
      continue
    if not {'counts0', 'counts'} <= entry.keys():
      return None
    for name in ('counts0', 'counts'):
      values = entry[name]
      good = isinstance(values, list) and all(type(value) is int and value >= 0
                                              for value in values)
      num_classes = len(values) if good and num_classes is None else num_classes
      if not good or not values or len(values) != num_classes:
        raise UserError(f'{where}: {name} {_short(str(values))}; an integer >= 0 a class, of as '
                        'many classes as in the lines before, is allowed')
    rows.append([entry['counts0'], entry['counts']])
  return Votes(*np.moveaxis(np.array(rows, np.int64), 1, 0)) if rows else None


def read_entries(path) -> list[dict[str, Any]]:
  """The lines of the images of a log of JSON lines, all fields, in the order of the file.

  Raises:
    UserError: as `read`.
  """
  return [entry for _, _, entry in _entries(Path(path), _parse_json)
          if not entry.keys() & {'header', 'environment'}]


def is_cut_off(path) -> bool:
  """Whether the last line was never written to its end, so that `read` drops it.

  Raises:
    UserError: the file cannot be read.
  """
  path = Path(path)
  lines = _lines(path)
  if not lines or lines[-1].endswith('\n'):
    return False
  try:
    _entry(_parser(path), lines[-1], len(lines), path)
  except UserError:
    return True
  return False


class Writer:
  """An open log; see `open_for_append`.

  Attributes:
    done: the indices of the images that are already in the log.
    begun: {index: dict} of images that are on their way, as `write` was given them.
  """

  def __init__(self, json_file, table_file, done, begun, save_progress, environment):
    self.done = done
    self.begun = begun
    self._save_progress = save_progress
    self._json_file = json_file
    self._table_file = table_file
    self._environment = environment  # still to be recorded, or None

  def write(self, records: Iterable[dict[str, Any]], unfinished: Iterable[dict[str, Any]] = ()):
    """Appends images to both twins and waits until the disk has them.

    Args:
      records: dicts with at least the columns of the table (time in seconds), as `records` makes
        them; further fields go to the JSON lines only. NumPy values are fine.
      unfinished: dicts with idx of all images that are on their way now, for `begun` of a resume.

    Raises:
      ValueError: an image is in the log already, or a field is missing or out of range.
    """
    entries, rows = [], []
    for record in records:
      entry = plain(record)
      rows.append(_row(entry, 'record'))
      entries.append(entry)
    new = [row[0] for row in rows]
    if len(set(new)) < len(new) or not self.done.isdisjoint(new):
      raise ValueError(f'images {new}: each image may be in the log once')
    unfinished = [plain(entry) for entry in unfinished]
    if (entries or unfinished) and self._environment is not None:
      entries.insert(0, {'environment': self._environment})
      self._environment = None
    if entries:
      _append(self._json_file, ''.join(map(_json_line, entries)))
      _append(self._table_file, ''.join(map(_table_line, rows)))
      self.done.update(new)
    begun = {entry['idx']: entry for entry in unfinished}
    if begun or self.begun:
      self.begun = begun
      self._save_progress(begun)


@contextlib.contextmanager
def open_for_append(stem, settings, environment) -> Iterator[Writer]:
  """Creates the log `stem`.jsonl with its twin `stem`.tsv, or opens it to add images.

  On opening, an unfinished last line is cut off the JSON lines and the table is written anew from
  them, so the twins agree whatever a crash left. Another environment than the last one is
  recorded before the first image that it adds or draws for.

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
  settings, environment = plain(settings), plain(environment)
  path.parent.mkdir(parents=True, exist_ok=True)
  log = _mend(path) if path.exists() else None
  if log is None or not log.environments:
    if table.exists() and table.stat().st_size > len(_TITLE):
      raise UserError(f'{table} has images but no {path.name} beside it; '
                      'move it away or choose another workdir')
    _replace(path, _json_line({'header': {'settings': settings, 'environment': environment}}))
    log = read(path)
  check_settings(path, log.settings, settings)
  rows = zip(*(column.tolist() for column in log[:len(COLUMNS)]))
  _replace(table, _TITLE + ''.join(map(_table_line, rows)))
  changed = None if environment == log.environments[-1] else environment
  done, progress = set(log.idx.tolist()), Path(f'{stem}.progress.json')
  save_progress = functools.partial(_save_progress, progress, log.settings)
  with open(path, 'a', encoding='utf-8') as json_file, \
       open(table, 'a', encoding='utf-8') as table_file:
    yield Writer(json_file, table_file, done, _progress(progress, log.settings, done),
                 save_progress, changed)


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
      'correct': np.asarray(certificate.prediction) == np.asarray(labels),
      'time': np.broadcast_to(np.asarray(seconds, float), np.shape(idx)),
  }
  fields = certificate._asdict()
  columns |= {name: fields[name] for name in fields if name not in ('prediction', 'radius')}
  columns['correct'] = columns['correct'].astype(int)
  lists = [column if isinstance(column, list) else np.asarray(column).tolist()
           for column in columns.values()]
  return [dict(zip(columns, row)) for row in zip(*lists)]


def check_settings(path, logged, settings):
  """Raises UserError, naming each difference, unless the settings of the log `path` are these.

  The noise of the training is no setting of the certificates: a log may tell nothing of it.
  """
  settings = plain(settings)
  absent = object()
  names = [name for name in {**logged, **settings} if name != 'training_noise'
           and logged.get(name, absent) != settings.get(name, absent)]
  if names:
    show = lambda values, name: json.dumps(values[name]) if name in values else 'absent'
    each = ', '.join(f'{name} is {show(settings, name)} but {show(logged, name)} in the log'
                     for name in names)
    raise UserError(f'{path}: {each}; the same settings or another workdir are allowed')


def plain(value):
  """`value` as JSON gives it back: NumPy values as numbers and lists, tuples as lists."""
  return json.loads(json.dumps(value, default=lambda array: array.tolist(), allow_nan=False))


# Reading.


def _is_json(path):
  return path.suffix == '.jsonl'


def _parser(path):
  return _parse_json if _is_json(path) else _parse_table


def _lines(path):
  try:
    # A byte order mark at the beginning is no part of the title.
    with open(path, encoding='utf-8-sig', errors='replace') as file:
      return file.readlines()
  except OSError as error:
    raise UserError(f'{path}: {error.strerror}; a certification log is allowed') from error


def _entries(path, parse):
  """Yields (where, text, entry) of every whole line; the title of a table is skipped."""
  for number, line in enumerate(_lines(path), 1):
    try:
      entry = _entry(parse, line, number, path)
    except UserError:
      if line.endswith('\n'):
        raise
      return  # Cut off in mid-line: never written to the end.
    if entry is not None:
      yield f'{path}:{number}', line, entry


def _entry(parse, line, number, path):
  """The checked entry of a line; None of the title of a table."""
  where = f'{path}:{number}'
  entry = parse(line.rstrip('\n'), number, where)
  if entry is not None and not entry.keys() & {'header', 'environment'}:
    _row(entry, where)
  return entry


def _parse_table(line, number, where):
  values = line.split('\t')
  if number == 1:
    if tuple(values) != COLUMNS:
      raise UserError(f'{where}: {_short(line)}; the title {" ".join(COLUMNS)} is allowed')
    return None
  if len(values) != len(COLUMNS):
    raise UserError(f'{where}: {_short(line)}; {len(COLUMNS)} values between tabs are allowed')
  return dict(zip(COLUMNS, values))


def _parse_json(line, number, where):
  try:
    entry = json.loads(line)
  except ValueError:
    entry = None
  if not isinstance(entry, dict):
    raise UserError(f'{where}: {_short(line)}; a JSON object is allowed')
  if number == 1 or 'header' in entry:
    header = entry.get('header')
    names = ('settings', 'environment')
    if number > 1 or not isinstance(header, dict) or not _are_dicts(header, names):
      raise UserError(f'{where}: {_short(line)}; a header with settings and environment is '
                      'allowed in the first line, and only there')
  elif 'environment' in entry and not _are_dicts(entry, ['environment']):
    raise UserError(f'{where}: {_short(line)}; an environment of names and values is allowed')
  return entry


def _are_dicts(entry, names):
  return all(isinstance(entry.get(name), dict) for name in names)


_ALLOWED = {
    'idx': 'an integer >= 0',
    'label': 'an integer >= 0',
    'predict': f'an integer >= 0, or {ABSTAIN} (abstains),',
    'radius': 'a finite number >= 0',
    'correct': '1 where predict equals label, else 0,',
    'time': 'h:mm:ss or seconds >= 0',
}


def _row(entry, where):
  """The checked values of one image, in the order of COLUMNS."""
  row = {}
  for name in COLUMNS:
    text = str(entry.get(name, ''))
    try:
      value = {'radius': float, 'time': _seconds}.get(name, int)(text)
    except ValueError:
      value = math.nan
    low = ABSTAIN if name == 'predict' else 0
    good = math.isfinite(value) and value >= low
    if name == 'correct' and good:
      good = value == (row['predict'] == row['label'])
    if not good:
      raise UserError(f'{where}: {name} {_short(text)}; {_ALLOWED[name]} is allowed')
    row[name] = value
  return tuple(row.values())


def _seconds(text):
  clock = re.fullmatch(r'(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)', text)
  if clock is None:
    return float(text)
  days, hours, minutes, seconds = clock.groups(default='0')
  return ((int(days) * 24 + int(hours)) * 60 + int(minutes)) * 60 + float(seconds)


def _progress(path, settings, done):
  """{index: dict} of the images on their way; {} where the file is none of a log like this one."""
  if not path.exists():
    return {}
  try:
    saved = json.loads(path.read_text(encoding='utf-8'))
    # Of images that a crash let into the log before the file was replaced, nothing is needed.
    images = {entry['idx']: entry for entry in saved['images'] if entry['idx'] not in done}
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f'{path} cannot be read ({type(error).__name__}: {error}); without the file, '
                    'its images are drawn for from the beginning') from error
  return images if saved['settings'] == settings else {}


def _short(text, limit=60):
  return repr(text if len(text) <= limit else text[:limit] + '...')


# Writing.


def _mend(path):
  """Cuts an unfinished last line off the JSON lines, and reads them."""
  text = ''.join(line for _, line, _ in _entries(path, _parse_json))
  if text and not text.endswith('\n'):
    text += '\n'
  if path.read_bytes() != text.encode():
    _replace(path, text)
  return read(path)


def _json_line(entry):
  return json.dumps(entry, separators=(',', ':')) + '\n'


def _table_line(row):
  idx, label, predict, radius, correct, time = row
  # Rounded down: the table, read back, may never claim more than was certified.
  radius = decimal.Decimal(str(radius)).quantize(decimal.Decimal('1e-5'), decimal.ROUND_DOWN)
  time = datetime.timedelta(seconds=time)
  return f'{idx}\t{label}\t{predict}\t{radius}\t{int(correct)}\t{time}\n'


def _save_progress(path, settings, begun):
  if begun:
    _replace(path, json.dumps({'settings': settings, 'images': list(begun.values())}))
  else:
    path.unlink(missing_ok=True)


def _append(file, text):
  file.write(text)
  file.flush()
  os.fsync(file.fileno())


def _replace(path, text):
  """Writes a file so that a crash leaves the old one or the new one, never a part."""
  new = path.with_name(path.name + '.new')
  with open(new, 'w', encoding='utf-8') as file:
    _append(file, text)
  os.replace(new, path)
