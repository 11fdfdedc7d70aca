"""The launcher's flags. What a person can type wrongly becomes one UserError."""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch import sweep
from robust_jax import stages
from robust_jax.errors import UserError

STAGES = [*stages.STAGES, 'report']
DEFAULT_CONFIG = 'configs/smoothadv_digits.py'


def parse(argv):
  """Parses the command line.

  Without --config, an existing workdir's own config is used, or else the default one.

  Args:
    argv: list of words, the program's name first.

  Returns:
    (config, workdir, stages, redo, devices, points): ConfigDict, Path, two lists of names, an int;
    points is None, or with --sweep the list of (point, resolved config).

  Raises:
    UserError: a flag, a field or a value that there is not.
  """
  values = dict(word.lstrip('-').partition('=')[::2] for word in argv if word.startswith('-'))
  values |= {word.lstrip('-'): value for word, value in zip(argv, argv[1:])
             if word.lstrip('-') in ('config', 'workdir') and word.startswith('-')}
  if 'config' not in values:
    folder = values.get('workdir', '')
    saved = folder and (Path(folder) / 'config.json').is_file()
    config_file = f'configs/workdir.py:{folder}' if saved else DEFAULT_CONFIG
    argv = [argv[0], f'--config={config_file}', *argv[1:]]
  else:
    config_file = values.get('config', '')
  if config_file and not Path(config_file.partition(':')[0]).is_file():
    raise UserError(f'--config is {config_file}; a file with a get_config() is allowed, such as '
                    f'{", ".join(sorted(map(str, Path("configs").glob("[a-z]*_*.py"))))}')
  try:
    return _parse(argv)
  except (AttributeError, KeyError) as error:
    raise UserError(_unknown_field(error, argv)) from error
  except UserError:
    raise
  except Exception as error:  # absl, ml_collections, and what a config file may raise.
    message = ' '.join(str(error).split()) or type(error).__name__
    raise UserError(f'command line: {message}') from error


def _parse(argv):
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file(
      'config', None, 'The experiment; --config.FIELD=VALUE changes it. '
      f'Default: that of an existing workdir, or {DEFAULT_CONFIG}.',
      flag_values=values, sys_argv=argv)
  workdir = flags.DEFINE_string(
      'workdir', None, 'Folder of the run; runs/NAME if not given.', flag_values=values)
  chosen = flags.DEFINE_list('stages', STAGES, 'Stages to run.', flag_values=values)
  redo = flags.DEFINE_list(
      'redo', [], f'Stages of {",".join(STAGES)} to run anew; old results move to previous/.',
      flag_values=values)
  devices = flags.DEFINE_integer(
      'devices', 0, 'Devices to use (CPU: to simulate); 0 for all.', lower_bound=0,
      flag_values=values)
  swept = flags.DEFINE_bool(
      'sweep', False, "Run every point of the config file's sweep(), each in its own folder of "
      '--workdir, and compare them.', flag_values=values)
  profile = flags.DEFINE_integer(
      'profile', 0, 'Training steps to trace, after the first ten, into WORKDIR/profile.',
      lower_bound=0, flag_values=values)
  flags.DEFINE_bool('help', False, 'Show this help.', flag_values=values)
  rest = values(argv)[1:]
  if values.help:
    print('python -m launch [--FLAG=VALUE ...]', values.main_module_help() or
          values.get_help().partition('\nabsl.flags:')[0], sep='\n')
    raise SystemExit(0)
  if rest:
    raise UserError(f'command line: {rest[0]!r} is no flag; --config, --config.FIELD, --workdir, '
                    '--stages, --redo, --devices, --sweep, --profile are allowed')
  for name, value in (('stages', chosen.value), ('redo', redo.value)):
    for stage in value:
      if stage not in STAGES:
        raise UserError(f'--{name} has {stage!r}; {", ".join(STAGES)} are allowed')
  if profile.value:
    config.value.train.profile_steps = profile.value
  config_file = Path(config_flags.get_config_filename(values['config']).partition(':')[0])
  folder = Path(workdir.value or f'runs/{config_file.stem}{"_sweep" if swept.value else ""}')
  points = None
  if swept.value:
    points = sweep.read_points(config_file)
    overridden = config_flags.get_override_values(values['config'])
    points = list(zip(points, sweep.expand(config.value, points, overridden)))
  return config.value, folder, chosen.value, redo.value, devices.value, points


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
