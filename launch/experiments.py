"""The experiments in configs/: found, listed and read by name, as configs/mnist.py:smoothadv."""

import inspect
import os
import runpy
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from configs import base
from robust_jax.errors import UserError, suggest

CONFIGS = Path('configs')
ROOT = Path(__file__).parents[1]


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


def read(given):
  """The ConfigFile of 'PATH' or 'PATH:NAME'; without a name, that of its default experiment.

  'digits:trades' is configs/digits.py:trades.

  Raises:
    UserError: there is no such file, or it has no get_config().
  """
  word, _, name = os.path.expanduser(given).partition(':')
  places = (word, f'configs/{word}', f'{word}.py', f'configs/{word}.py')
  # From another folder those of the checkout are there as well.
  path = next(filter(os.path.isfile, (*places, *(ROOT / place for place in places))), None)
  if path is None:
    raise UserError(f'--config must be FILE:EXPERIMENT, as --list shows; there is no {word!r}'
                    + _suggest(given))
  try:
    scope = runpy.run_path(path)
    default, = [*inspect.signature(scope['get_config']).parameters.values()] or [None]
  except Exception as error:
    raise UserError(f'--config: {path} has no get_config() ({_one_line(error)})') from error
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
    raise UserError(f'--config: get_config() of {file.path} raises {_one_line(error)}') from error
  if not isinstance(made, ConfigDict):
    raise UserError(f'--config: get_config() of {file.path} must return a ConfigDict, got {made!r}')
  return made


def listing():
  """What --list prints: a line for each experiment, by file."""
  groups = []
  for file in _files():
    lines = [(f'{file.path}:{name}' + ' *' * (name in file.names), function.__doc__)
             for name, function in base.experiments(file.scope).items()]
    groups.append('\n'.join(f'{name:<43} {text.splitlines()[0].rstrip(".")}' for name, text in
                            lines or [(str(file.path), file.scope['__doc__'])]))
  return '\n\n'.join([*groups, '* what the file gives without a name'])


def _files():
  """The files of experiments."""
  folder = CONFIGS if CONFIGS.is_dir() else ROOT / CONFIGS
  return [read(str(path)) for path in sorted(folder.glob('[a-z]*.py'))
          if path.stem not in ('base', 'workdir')]


def _suggest(given):
  """The experiments whose words are nearest, of mnist:gaussian, gaussian or gaussian_mnist.py."""
  names = {}
  for file in _files():
    stem = file.path.stem
    names.setdefault(stem, []).append(str(file.path))
    for name in base.experiments(file.scope):
      for words in (name, f'{stem}_{name}', f'{name}_{stem}'):
        names.setdefault(words, []).append(f'{file.path}:{name}')
  words = given.removeprefix('configs/').replace('.py', '').replace(':', '_')
  return suggest(words, names, lambda near: ' or '.join(names[near]))


def _one_line(error):
  return ' '.join(f'{type(error).__name__}: {error}'.split())
