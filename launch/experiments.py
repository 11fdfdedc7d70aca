"""The experiments in configs/: found, listed and read by name, as configs/mnist.py:smoothadv."""

import inspect
import runpy
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from configs import base
from robust_jax.errors import UserError, suggest


class ConfigFile(NamedTuple):
  """A config file, and the name after its colon.

  Attributes:
    path: Path.
    names: [] without a name, or [name]: the arguments of its get_config() and sweep().
    scope: what the file defines.
  """

  path: Path
  names: list[str]
  scope: dict

  @property
  def title(self):
    """What it is called in runs/: gaussian_mnist for configs/mnist.py:gaussian."""
    named = [name for name in self.names if name in base.experiments(self.scope)]
    return '_'.join([*named, self.path.stem])


def read(file):
  """The ConfigFile of 'PATH' or 'PATH:NAME'; without a name, that of its default experiment.

  Raises:
    UserError: there is no such file, or it has no get_config().
  """
  path, _, name = file.partition(':')
  if not Path(path).is_file():
    names = _names()
    raise UserError(f'--config: there is no file {path} (python -m launch --list shows all)'
                    + suggest(path, names, names.get))
  try:
    scope = runpy.run_path(path)
    default, = [*inspect.signature(scope['get_config']).parameters.values()] or [None]
  except Exception as error:
    message = ' '.join(f'{type(error).__name__}: {error}'.split())
    raise UserError(f'--config: {path} has no get_config() ({message})') from error
  if not name and default is not None and isinstance(default.default, str):
    name = default.default
  return ConfigFile(Path(path), [name] if name else [], scope)


def config(file):
  """The ConfigDict of a ConfigFile.

  Raises:
    UserError: it has no such experiment, or gives something else.
  """
  try:
    made = file.scope['get_config'](*file.names)
  except UserError:
    raise
  except Exception as error:
    message = ' '.join(f'{type(error).__name__}: {error}'.split())
    raise UserError(f'--config: get_config() of {file.path} raises {message}') from error
  if not isinstance(made, ConfigDict):
    raise UserError(f'--config: get_config() of {file.path} must return a ConfigDict, got {made!r}')
  return made


def listing():
  """What --list prints: a line for each experiment, by file."""
  groups = []
  for path in sorted(Path('configs').glob('[a-z]*.py')):
    if path.stem in ('base', 'workdir'):
      continue
    file = read(str(path))
    found = base.experiments(file.scope)
    lines = [(f'{path}:{name}' + ' *' * (name in file.names), function.__doc__)
             for name, function in found.items()] or [(str(path), file.scope['__doc__'])]
    groups.append('\n'.join(f'{name:<43} {text.splitlines()[0].rstrip(".")}'
                            for name, text in lines))
  return '\n\n'.join([*groups, '* what the file gives without a name'])


def _names():
  """{a path that may be given: the name it should have} of every experiment and config file."""
  names = {}
  for path in map(str, sorted(Path('configs').glob('[a-z]*.py'))):
    names[path] = path
    for name in base.experiments(runpy.run_path(path)):
      # Each experiment had a file of its own once: configs/gaussian_mnist.py.
      stem = Path(path).stem
      names |= dict.fromkeys([f'configs/{name}_{stem}.py', f'configs/{stem}_{name}.py'],
                             f'{path}:{name}')
  return names
