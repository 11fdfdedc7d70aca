"""The launcher's flags: what a command line asks for. Every mistake in it is one UserError."""

import re
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from launch import experiments, sweep
from robust_jax import stages
from robust_jax.config import schema
from robust_jax.config.sections import TABLES, component
from robust_jax.errors import UserError

# Sections whose name chooses what their fields are of.
NAMED = (*TABLES, 'data', 'extra')
DEFAULT_CONFIG = 'configs/smoothadv_digits.py'
# A number as papers write radii: --config.epsilon=8/255, also within a tuple.
FRACTION = re.compile(r'(?<![\w./])(\d+\.?\d*|\.\d+) */ *(\d+\.?\d*|\.\d+)(?![\w./])')


class CommandLine(NamedTuple):
  """What a command line asks for.

  Attributes:
    config: ConfigDict, the overrides applied.
    workdir: Path.
    stages: names, of `stages.STAGES`.
    redo: names of the stages to run anew.
    devices: how many; 0 for all.
    sweep: with --sweep, the `sweep.Sweep`; else None.
  """

  config: ConfigDict
  workdir: Path
  stages: list[str]
  redo: list[str]
  devices: int
  sweep: sweep.Sweep | None


def parse(argv):
  """Parses the command line.

  Without --config, an existing workdir's own config is used, or else the default one.

  Args:
    argv: list of words, the program's name first.

  Returns:
    CommandLine.

  Raises:
    UserError: a flag, a field or a value that there is not.
  """
  folder = _value_of('workdir', argv)[0] or ''
  saved = folder and (Path(folder) / 'config.json').is_file()
  config_file, argv = _value_of('config', argv)
  if config_file is None:
    config_file = f'configs/workdir.py:{folder}' if saved else DEFAULT_CONFIG
  for word, following in zip(argv, [*argv[1:], '']):
    field, equals, value = word.lstrip('-').partition('=')
    if word.startswith('-') and field.startswith('config.') and field.split('.')[-1] in NAMED:
      value = value if equals else following
      raise UserError(f'--{field} has fields, got {value!r}: use --{field}.name={value}')
  try:
    return _parse(experiments.read(config_file), argv)
  except UserError:
    raise
  except (AttributeError, KeyError) as error:
    raise UserError(_unknown_field(error, argv)) from error
  except Exception as error:  # absl and ml_collections.
    message = ' '.join(str(error).split()) or type(error).__name__
    raise UserError(f'command line: {message}') from error


def _value_of(flag, argv):
  """(value of --flag=value or --flag value, or None; the words without it)."""
  for number, word in enumerate(argv):
    name, equals, value = word.partition('=')
    if name in (f'--{flag}', f'-{flag}'):
      if equals:
        return value, argv[:number] + argv[number + 1:]
      return ''.join(argv[number + 1:number + 2]), argv[:number] + argv[number + 2:]
  return None, argv


def _load(file, argv):
  """The config of a file, with the components whose names the command line changes.

  A component of another name keeps the fields that the new one has too; the others are at the new
  one's defaults. Its fields can then be given like any other's. A method that attacks, in place of
  one that does not, attacks as config.attack.
  """
  config = experiments.config(file)
  for word in argv:
    path, _, name = word.lstrip('-').partition('=')
    *sections, last = path.split('.')[1:] or ['']
    parent = config
    for section in sections[:-1]:
      parent = parent.get(section, {})
    if last == 'name' and sections and sections[-1] in TABLES and sections[-1] in parent:
      kind, old = sections[-1], parent[sections[-1]]
      if name in TABLES[kind] and name != old.name:
        fields = schema.fields(TABLES[kind][name])
        kept = {field: value for field, value in _given(old).items() if field in fields}
        if 'attack' in fields and 'attack' not in kept:
          kept['attack'] = component('attack', **_given(config.attack))
        with parent.unlocked():
          parent[kind] = component(kind, name, **kept)
  return config


def _in_decimals(word, config):
  """--config.FIELD=8/255 as 0.03137... where FIELD has numbers; any other word as it is."""
  path, equals, value = word.partition('=')
  flag, *fields = path.lstrip('-').split('.')
  if flag != 'config' or not fields or not equals:
    return word
  for section in fields[:-1]:
    config = config.get(section) if isinstance(config, ConfigDict) else None
  there = isinstance(config, ConfigDict) and fields[-1] in config
  if not there or config.get_type(fields[-1]) not in (float, tuple):
    return word
  return f'{path}={FRACTION.sub(_decimal, value)}'


def _decimal(fraction):
  over, under = map(float, fraction.groups())
  return repr(over / under) if under else fraction[0]


def _given(section):
  return {field: value for field, value in section.items() if value is not None}


def _parse(file, argv):
  values = flags.FlagValues()
  loaded = _load(file, argv)
  argv = [_in_decimals(word, loaded) for word in argv]
  config = config_flags.DEFINE_config_dict(
      'config', loaded,
      'FILE:NAME, an experiment of a config file; --config.FIELD=VALUE changes it. '
      f'Default: that of an existing workdir, or {DEFAULT_CONFIG}.',
      flag_values=values, sys_argv=argv)
  workdir = flags.DEFINE_string(
      'workdir', None, 'Folder of the run; runs/NAME if not given.', flag_values=values)
  chosen = flags.DEFINE_list(
      'stages', None, f'Stages to run, of {",".join(stages.STAGES)}. Default: '
      f'{",".join(stages.DEFAULT)}, or what the study of a sweep needs.', flag_values=values)
  redo = flags.DEFINE_list(
      'redo', [], f'Stages of {",".join(stages.DEFAULT)} to run anew; old results move to '
      'previous/.', flag_values=values)
  devices = flags.DEFINE_integer(
      'devices', 0, 'Devices to use (CPU: to simulate); 0 for all.', lower_bound=0,
      flag_values=values)
  swept = flags.DEFINE_bool(
      'sweep', False, "Run every point of the config file's sweep(), each in its own folder of "
      '--workdir, and compare them.', flag_values=values)
  profile = flags.DEFINE_integer(
      'profile', 0, 'Training steps to trace, after the first ten, into WORKDIR/profile.',
      lower_bound=0, flag_values=values)
  listed = flags.DEFINE_bool('list', False, 'Show all experiments.', flag_values=values)
  flags.DEFINE_bool('help', False, 'Show this help.', flag_values=values)
  rest = values(argv)[1:]
  if values.help:
    print('python -m launch [--FLAG=VALUE ...]', values.main_module_help() or
          values.get_help().partition('\nabsl.flags:')[0], sep='\n')
    raise SystemExit(0)
  if listed.value:
    print(experiments.listing())
    raise SystemExit(0)
  if rest:
    raise UserError(f'command line: {rest[0]!r} is no flag; --config, --config.FIELD, --workdir, '
                    '--stages, --redo, --devices, --sweep, --profile are allowed')
  for name, value, allowed in (
      ('stages', chosen.value, stages.STAGES), ('redo', redo.value, stages.DEFAULT)):
    for stage in value or ():
      if stage not in allowed:
        raise UserError(f'--{name} has {stage!r}; {", ".join(allowed)} are allowed')
  if profile.value:
    config.value.train.profile_steps = profile.value
  folder = Path(workdir.value or f'runs/{file.title}{"_sweep" if swept.value else ""}')
  found = None
  if swept.value:
    own = lambda name: _parse(experiments.read(name), [*argv, '--nosweep']).config
    found = sweep.read(file, lambda name: own(name) if name else config.value,
                       config_flags.get_override_values(values['config']))
  default = found.study.STAGES if found and found.study else stages.DEFAULT
  wanted = [*default] if chosen.value is None else chosen.value
  return CommandLine(config.value, folder, wanted, redo.value, devices.value, found)


def _unknown_field(error, argv):
  """ml_collections names the last part of the field only: find the flag that holds it."""
  message = ' '.join(str(error).replace('\\n', ' ').replace('\\', '').split())
  for word in argv:
    path = word.lstrip('-').partition('=')[0]
    last = next((part for part in path.split('.')[1:] if f"'{part}'" in message), None)
    if path.startswith('config.') and last:
      near = message.partition('Did you mean "')[2].partition('"')[0]
      hint = f'did you mean {near}?' if near else 'configs/base.py and the config file list them'
      return f'{path} is not a field; {hint}'
  return f'command line: {message}'
