"""Files that survive a crash: JSON lines that are only added to, and files that are written whole.

A last line that a crash has cut off was never there: `read` drops it, and `resume` removes it
before more lines follow. Whatever else is not as written is an error that names the line; but white
space at the end of a line, and empty lines at the end of a file, count for nothing, and a file that
somebody has compressed by gzip is read as well.
"""

import gzip
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robust_jax.errors import UserError

_GZIP = b'\x1f\x8b'
_HEADER = '{"header"'


class NoHeaderError(ValueError):
  """The first line is no header, nor the beginning of one: the file is something else."""


def parse_json(text, number):
  """The JSON object of a line.

  Raises:
    ValueError: it is none.
  """
  del number
  try:
    entry = json.loads(text)
  except ValueError:
    entry = None
  if not isinstance(entry, dict):
    raise ValueError(f'must be a JSON object, got {short(text)}')
  return entry


def parse_header(text):
  """The JSON object of the first line of a file that begins with a header.

  Raises:
    ValueError: it is cut off.
    NoHeaderError: it is something else.
  """
  if text.startswith(_HEADER) or _HEADER.startswith(text):
    return parse_json(text, 1)
  raise NoHeaderError(f'must be a JSON object with a header, got {short(text)}')


def read(path, parse: Callable[[str, int], Any] = parse_json) -> list:
  """The entries of a file, one a line.

  Args:
    path: the file.
    parse: (text of a line, its number from 1) -> entry; raises ValueError where it is malformed.

  Raises:
    UserError: the file cannot be read, or a line, named as `file:line`, is malformed.
  """
  return [entry for _, entry in _lines_and_entries(path, parse)]


def is_cut_off(path, parse=parse_json) -> bool:
  """Whether the last line was never written to its end, so that `read` drops it.

  Raises:
    UserError: as `read`.
  """
  return len(_lines_and_entries(path, parse)) < len(_lines(path))


def stem(path) -> Path:
  """The path without the ending .gz."""
  path = Path(path)
  return path.with_suffix('') if path.suffix == '.gz' else path


def open_text(path):
  """Opens a text file, compressed or not, to be read. A byte order mark is no part of the text."""
  with open(path, 'rb') as file:
    opened = gzip.open if file.read(2) == _GZIP else open
  return opened(path, 'rt', encoding='utf-8-sig', errors='replace')


def resume(path, header=None, *, keep=lambda entry: True, parse=parse_json) -> list[dict]:
  """Makes a file of JSON lines ready for `append`, whether it exists or not.

  Args:
    path: the file.
    header: the first entry of a new file; None without one.
    keep: entries for which this is False are removed, as is a line that was cut off.
    parse: see `read`.

  Returns:
    The entries that the file has now.

  Raises:
    UserError: as `read`.
  """
  path = Path(path)
  kept = [(line, entry) for line, entry in
          (_lines_and_entries(path, parse) if path.exists() else []) if keep(entry)]
  if not kept and header is not None:
    kept = [(line(header), plain(header))]
  contents = ''.join(line.rstrip('\n') + '\n' for line, _ in kept).encode()
  if not path.exists() or path.read_bytes() != contents:
    write_bytes(path, contents)
  return [entry for _, entry in kept]


def append(path, *entries):
  """Adds entries to a file of JSON lines and waits until the disk has them."""
  with open(path, 'a', encoding='utf-8') as file:
    file.write(''.join(map(line, entries)))
    file.flush()
    os.fsync(file.fileno())


def check_same(path, saved, now):
  """Raises UserError, naming each difference, unless the settings in file `path` are those now."""
  now = plain(now)
  absent = object()
  names = [name for name in {**saved, **now} if saved.get(name, absent) != now.get(name, absent)]
  if names:
    show = lambda values, name: json.dumps(values[name]) if name in values else 'absent'
    each = ', '.join(f'{name} is {show(now, name)} but {show(saved, name)} in the log'
                     for name in names)
    raise UserError(f'{path}: {each}; give the same settings, another workdir, or --redo')


def write_bytes(path, contents):
  """Writes a file so that a crash leaves the old one or the new one, never a part."""
  new = Path(f'{path}.new')
  with open(new, 'wb') as file:
    file.write(contents)
    file.flush()
    os.fsync(file.fileno())
  os.replace(new, path)


def write_json(path, value):
  """Writes a JSON file; see `write_bytes`."""
  write_bytes(path, (json.dumps(value, indent=1) + '\n').encode())


def read_json(path):
  """The contents of a JSON file.

  Raises:
    UserError: it cannot be read.
  """
  try:
    return json.loads(Path(path).read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise UserError(f'{path} cannot be read ({error})') from error


def plain(value):
  """`value` as JSON gives it back: NumPy values as numbers and lists, tuples as lists.

  Raises:
    ValueError: it has a number that is not finite.
  """
  return json.loads(json.dumps(value, default=lambda array: array.tolist(), allow_nan=False))


def short(text, limit=60):
  """A text in quotation marks for an error message, its end left out where it is long."""
  return repr(text if len(text) <= limit else text[:limit] + '...')


def line(entry):
  """An entry as a line of a file."""
  return json.dumps(entry, separators=(',', ':')) + '\n'


def _lines(path):
  try:
    with open_text(path) as file:
      lines = file.readlines()
  except (OSError, EOFError, zlib.error) as error:  # The latter of a damaged .gz.
    raise UserError(f'{path}: {getattr(error, "strerror", None) or error}') from error
  while lines and not lines[-1].strip():
    lines.pop()
  return lines


def _lines_and_entries(path, parse):
  lines, parsed = _lines(path), []
  for number, line in enumerate(lines, 1):
    try:
      parsed.append((line, parse(line.rstrip(), number)))
    except ValueError as error:
      if not line.endswith('\n') and not isinstance(error, NoHeaderError):
        break  # Cut off: never written to its end.
      raise UserError(f'{path}:{number}: {error}') from error
  return parsed
