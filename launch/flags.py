"""The launcher's flags: what a command line asks for. Every mistake in it is one UserError."""

import ast
import functools
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from launch import experiments, fields, jobs, schedulers, sweep, usage
from robust_jax import schema, stages
from robust_jax.config.sections import SECTIONS, TABLES, component, find, flat
from robust_jax.devices.processes import Meeting
from robust_jax.errors import UserError, suggest
from robust_jax.stages import shards

# Sections whose name chooses what their fields are of.
NAMED = (*TABLES, 'data', 'extra')
DEFAULT_CONFIG = 'configs/smoothadv_digits.py'
_COUNT = functools.partial(flags.DEFINE_integer, lower_bound=0)
# How absl defines each flag but config and help, and its default; `usage` says what they are for.
FLAGS = {
    'list': (flags.DEFINE_bool, False), 'workdir': (flags.DEFINE_string, None),
    'stages': (flags.DEFINE_list, None), 'redo': (flags.DEFINE_list, []), 'devices': (_COUNT, 0),
    'shard': (flags.DEFINE_string, None), 'submit': (flags.DEFINE_string, None),
    'jobs': (flags.DEFINE_bool, False),
    'coordinator': (flags.DEFINE_string, None), 'num_processes': (_COUNT, None),
    'process_id': (_COUNT, None), 'distributed': (flags.DEFINE_bool, False),
    'step_timeout': (_COUNT, 600),
    'sweep': (flags.DEFINE_bool, False), 'profile': (_COUNT, 0)}
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
    shards: the (I, N) of --shard: none, one or, with --submit, several.
    submit: with --submit, the `jobs.Submission`; else None.
    jobs: whether the table of jobs is wanted and nothing else.
    words: those of a shard's job, but for its --shard and --stages.
    meeting: where this is one of several processes; else None.
  """

  config: ConfigDict
  workdir: Path
  stages: list[str]
  redo: list[str]
  devices: int
  sweep: sweep.Sweep | None
  shards: list[tuple[int, int]]
  submit: jobs.Submission | None = None
  jobs: bool = False
  words: tuple[str, ...] = ()
  meeting: Meeting | None = None

  @property
  def shard(self):
    """The one (I, N) of --shard, or None."""
    return self.shards[0] if len(self.shards) == 1 else None


def parse(argv):
  """Parses the command line.

  Without --config, an existing workdir's own config is used, or else the default one.

  Args:
    argv: list of words, the program's name first.

  Returns:
    CommandLine.

  Raises:
    UserError: a flag, a field or a value that there is not.
    SystemExit: --help and --list, after what they print.
  """
  if {'-h', '-help', '--help'} & {*argv}:
    print(usage.TEXT, end='')
    raise SystemExit(0)
  folder = os.path.expanduser(_value_of('workdir', argv)[0] or '')
  given, argv = _value_of('config', argv)
  explained, argv = _value_of('help', argv)
  settings, argv = _settings(argv)
  configured = given is not None
  if not configured:
    saved = folder and (Path(folder) / 'config.json').is_file()
    if folder and not saved and '--jobs' not in argv:  # Its name may be spelt otherwise.
      print(f'warning: --workdir is {folder}, which has no run, and there is no --config: that of '
            f'{DEFAULT_CONFIG} is taken', file=sys.stderr)
    given = f'configs/workdir.py:{folder}' if saved else DEFAULT_CONFIG
  for word, following in zip(argv, [*argv[1:], '']):
    field, equals, value = word.lstrip('-').partition('=')
    *outer, last = field.split('.')
    # config.bound.method is a field, config.method.attack a section.
    if word.startswith('-') and outer[:1] == ['config'] and last in NAMED and not (
        {*outer[1:]} & {*SECTIONS}):
      value = value if equals else following
      raise UserError(f'--{field} has fields, got {value!r}: use --{field}.name={value}')
  try:
    command = _command_line(experiments.read(given), argv)
  except UserError:
    raise
  except (AttributeError, KeyError) as error:
    raise UserError(_unknown_field(error, argv)) from error
  except Exception as error:  # absl and ml_collections.
    message = ' '.join(str(error).split()) or type(error).__name__
    unparsed = re.match(r"Could not parse '([\w.]+)': SyntaxError", message)
    number = re.search(r'--([\w.]+)=(\S*): (invalid literal for int|could not convert)', message)
    if number:
      kind = 'an integer' if 'int' in number[3] else 'a number'
      raise UserError(f'--{number[1]} must be {kind}, got {number[2]!r}') from error
    if unparsed:  # Its last part is a keyword of Python's, as lambda.
      message = f'config.{unparsed[1]} is not a field; --help=fields lists them'
    raise UserError(f'command line: {message}') from error
  command = _submitted(command, settings, [*([f'--config={given}'] * configured), *argv[1:]])
  if explained is not None:
    print(fields.listing(command.config, explained))
    raise SystemExit(0)
  return command


def _command_line(file, argv):
  """The CommandLine of a `experiments.ConfigFile` and the words besides --config."""
  values = flags.FlagValues()
  config = _load(file, argv)
  argv = [_in_decimals(word, config) for word in argv]
  several, argv = _several(argv, config)
  # A run of a sweep begins with its own config, which is to be unset too.
  words = [word for word in argv if not _is_unset(word, config)]
  config_flags.DEFINE_config_dict('config', config, '', flag_values=values, sys_argv=words)
  for name, (define, default) in FLAGS.items():
    define(name, default, '', flag_values=values)
  try:
    rest = values(words)[1:]
  except flags.UnrecognizedFlagError as error:
    raise UserError(_unknown_flag(error.flagname, config)) from error
  if values.list:
    print(experiments.listing())
    raise SystemExit(0)
  if rest:
    raise UserError(f'command line: words must be --config, --config.FIELD or '
                    f'--{", --".join(FLAGS)}, got {rest[0]!r}')
  for name, valid in (('stages', stages.STAGES), ('redo', (*stages.KEPT, 'report'))):
    for stage in values[name].value or ():
      if stage not in valid:
        raise UserError(f'--{name} must be of {", ".join(valid)}, got {stage!r}')
  config = values.config
  if values.profile:
    config.train.profile_steps = values.profile
  if several and not values.sweep:
    field, numbers = next(iter(several.items()))
    raise UserError(f'--config.{field} must be one number, got {",".join(map(str, numbers))}; with '
                    '--sweep there is a run for each')
  swept = None
  if values.sweep:
    swept = sweep.read(
        file, lambda name: _command_line(experiments.read(name), [*argv, '--nosweep']).config
        if name else config, config_flags.get_override_values(values['config']), several)
  default = swept.study.STAGES if swept and swept.study else stages.DEFAULT
  shared = _shards(values) if values.shard is not None else []
  submission = jobs.Submission(values.submit, {}) if values.submit is not None else None
  wanted = values.stages
  if wanted is None:
    wanted = [stage for stage in default if stage in shards.STAGES or not shared]
  return CommandLine(
      config, Path(values.workdir or f'runs/{file.title}{"_sweep" if swept else ""}').expanduser(),
      wanted, values.redo, values.devices, swept, shared, submission, values.jobs,
      meeting=_meeting(values))


def _shards(values):
  """The (I, N) of --shard=I/N or I-J/N, and whether the other flags go with it."""
  number, _, total = values.shard.partition('/')
  several = re.fullmatch(r'(\d+)-(\d+)', number) if values.submit is not None else None
  if number == 'auto' and re.fullmatch(r'\d*', total):
    shared = [schedulers.shard(int(total) if total else None)]
  elif re.fullmatch(r'\d+/\d+', values.shard) and int(number) < int(total):
    shared = [(int(number), int(total))]
  elif several and total.isdecimal() and int(several[1]) <= int(several[2]) < int(total):
    shared = [(each, int(total)) for each in range(int(several[1]), int(several[2]) + 1)]
  else:
    raise UserError('--shard must be I/N, the I-th of N from 0 on, auto, auto/N or, with --submit, '
                    f'I-J/N, got {values.shard!r}')
  if values.sweep:
    raise UserError('--shard is given, but each run of --sweep is whole')
  other = [stage for stage in (*(values.stages or ()), *values.redo)
           if stage not in (*shards.STAGES, 'verify')]
  if other:
    raise UserError(f'--shard: the stages must be of {", ".join(shards.STAGES)}, verify, got '
                    f'{other[0]!r}')
  return shared


def _settings(argv):
  """({name: value} of each --submit.NAME=VALUE, the other words)."""
  settings, others = {}, []
  for word in argv:
    name, equals, value = word.lstrip('-').partition('=')
    if not word.startswith('-') or not name.startswith('submit.'):
      others.append(word)
      continue
    if not equals:
      raise UserError(f'--{name} must be --{name}=VALUE')
    try:
      settings[name.removeprefix('submit.')] = ast.literal_eval(value)
    except (SyntaxError, ValueError):  # A name: --submit.partition=gpu.
      settings[name.removeprefix('submit.')] = value
  return settings, others


def _submitted(command, settings, words):
  """The CommandLine with what --submit says, and the words of a shard's job."""
  if command.submit is None:
    if settings:
      raise UserError(f'--submit.{next(iter(settings))} is given, but not --submit')
    return command
  cluster = command.submit.cluster
  if cluster not in jobs.CLUSTERS:
    raise UserError(f'--submit must be {" or ".join(jobs.CLUSTERS)}, got {cluster!r}')
  if command.sweep is None and not command.shards:
    raise UserError(f'--submit={cluster} must have --sweep or --shard=I-J/N beside it')
  for flag in ('submit', 'shard', 'stages', 'redo'):
    while _value_of(flag, words)[0] is not None:
      words = _value_of(flag, words)[1]
  return command._replace(submit=jobs.Submission(cluster, settings), words=tuple(words))


def _meeting(values):
  """The `Meeting` of --coordinator or --distributed; None without, and in a sweep's points."""
  given = [name for name in ('coordinator', 'num_processes', 'process_id')
           if values[name].value is not None]
  if not given and not values.distributed:
    return None
  if values.distributed and given:
    raise UserError(f'--{given[0]} is given, but --distributed finds it by itself; give one of the '
                    'two ways')
  for flag in ('sweep', 'submit', 'jobs'):
    if values[flag].value:
      raise UserError(f'--{flag} must be of one process; give several to each run')
  if values.redo:
    raise UserError('--redo must be of one process: where a process is lost, all begin again with '
                    'the same command, which would redo it again; take another --workdir')
  if not values.distributed:
    missing = {'coordinator', 'num_processes', 'process_id'} - {*given}
    if missing:
      raise UserError(f'--{min(missing)} is missing: --coordinator=HOST:PORT, --num_processes=N '
                      'and --process_id=I go together')
    if not re.fullmatch(r'(\[[0-9a-fA-F:]+\]|[^\s:]+):\d+', values.coordinator):
      raise UserError('--coordinator must be HOST:PORT, of the machine of process 0, got '
                      f'{values.coordinator!r}')
    if not values.process_id < values.num_processes:
      raise UserError(f'--process_id must be 0 to {values.num_processes - 1}, one below '
                      f'--num_processes, got {values.process_id}')
  return Meeting(values.coordinator, values.num_processes, values.process_id, values.step_timeout)


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

  Raises:
    UserError: what is kept has no meaning there, such as the norm linf for DDN.
  """
  config = experiments.config(file)
  given = lambda section: {field: value for field, value in section.items() if value is not None}
  for word in argv:
    path, _, name = word.lstrip('-').partition('=')
    *outer, kind, last = ['', *path.split('.')]
    section = _section(config, outer[2:])
    known = (section is not None and kind in section and kind in TABLES
             and (name in TABLES[kind] or ':' in name))
    if last == 'name' and known and name != section[kind].name:
      fields = schema.fields(find(kind, name))
      # A model of the user's own has the defaults of its file.
      own = kind == 'model' and ':' in name
      kept = {field: value for field, value in given(section[kind]).items()
              if field in fields and not own}
      if 'attack' in fields and 'attack' not in kept:
        kept['attack'] = component('attack', **given(config.attack))
      _check_kept(path.removesuffix('.name'), section[kind].name, kept, fields, argv)
      with section.unlocked():
        section[kind] = component(kind, name, **kept)
  for word in filter(lambda word: _is_unset(word, config), argv):
    path = word.partition('=')[0]
    *outer, field = path.lstrip('-').split('.')
    section = _section(config, outer[1:])
    # Whether the field may be None is checked with the others.
    with section.ignore_type():
      section[field] = config_dict.placeholder(_type_of(path, config))
  return config


def _is_unset(word, config):
  """Whether it is --config.FIELD=None of a number, which flags of numbers do not take."""
  path, _, value = word.partition('=')
  return value == 'None' and _type_of(path, config) in (int, float)


def _check_kept(path, old, kept, fields, argv):
  replaced = {word.lstrip('-').partition('=')[0] for word in argv}
  for field, value in kept.items():
    flag = f'{path}.{field}'
    if field != 'attack' and flag not in replaced:
      try:
        schema.check_value(flag, value, fields[field].hint)
      except UserError as error:
        raise UserError(f'{error}, kept from {old}: give --{flag}= too') from error


def _section(config, names):
  """The section of a config at the end of `names`; None where there is none."""
  for name in names:
    config = config.get(name) if isinstance(config, ConfigDict) else None
  return config if isinstance(config, ConfigDict) else None


def _in_decimals(word, config):
  """--config.FIELD=8/255 as 0.03137... where FIELD has numbers; any other word as it is."""
  path, equals, value = word.partition('=')
  if equals and _type_of(path, config) in (float, tuple):
    return f'{path}={FRACTION.sub(_decimal, value)}'
  return word


def _several(argv, config):
  """({field: numbers} of each --config.FIELD=A,B,... where FIELD is a number, the other words)."""
  several, others = {}, []
  for word in argv:
    path, _, value = word.partition('=')
    kind = _type_of(path, config)
    if kind in (int, float) and ',' in value:
      try:
        several[path.lstrip('-').removeprefix('config.')] = [kind(n) for n in value.split(',')]
      except ValueError as error:
        raise UserError(f'{path} must be of type {kind.__name__}, or several with commas between, '
                        f'got {value!r}') from error
    else:
      others.append(word)
  return several, others


def _type_of(path, config):
  """The type of the field that a flag --config.FIELD sets; None where there is no such field."""
  *outer, field = path.lstrip('-').split('.')
  section = _section(config, outer[1:]) if path[0] == '-' and outer[:1] == ['config'] else None
  return section.get_type(field) if section is not None and field in section else None


def _decimal(fraction):
  over, under = map(float, fraction.groups())
  return repr(over / under) if under else fraction[0]


def _unknown_flag(name, config):
  """--epsilon for --config.epsilon, or a flag that is spelt otherwise."""
  paths = [f'config.{path}' for path in flat(config.to_dict())]
  # Those of stages that are asked for by name come last.
  late = ('bound', 'check', 'attack_image', 'export')
  same = sorted((path for path in paths if path.endswith(f'.{name}')),
                 key=lambda path: (path.split('.')[1] in late, len(path)))
  if name in _MEANT:
    same = [_MEANT[name]]
  hint = f'; did you mean --{" or --".join(same[:3])}?' if same else suggest(
      name, ['config', 'help', *FLAGS, *paths], lambda near: f'--{near}')
  return f'--{name} is not a flag{hint or "; --help lists them"}'


# Names of other code bases.
_MEANT = {'lr': 'config.schedule.learning_rate', 'learning_rate': 'config.schedule.learning_rate',
          'epochs': 'config.train.num_epochs', 'arch': 'config.model.name',
          'dataset': 'config.data.name', 'eps': 'config.epsilon', 'noise_sd': 'config.sigma',
          'attack.epsilon': 'config.evaluation.epsilons',
          'config.attack.eps': 'config.evaluation.epsilons',
          'config.attack.steps': 'config.attack.num_steps', 'config.norm': 'config.attack.norm',
          'config.method.attack.epsilon': 'config.epsilon',
          'config.method.attack.eps': 'config.epsilon',
          'config.method.attack.steps': 'config.method.attack.num_steps',
          'N': 'config.certify.n', 'N0': 'config.certify.n0',
          'skip': 'config.certify_images.stride', 'max': 'config.certify_images.num_images',
          'config.evaluation.skip': 'config.evaluation.stride',
          'config.evaluation.max': 'config.evaluation.num_images'}


def _unknown_field(error, argv):
  """ml_collections names the last part of the field only: find the flag that holds it."""
  message = ' '.join(str(error).replace('\\n', ' ').replace('\\', '').split())
  for word in argv:
    path = word.lstrip('-').partition('=')[0]
    last = next((part for part in path.split('.')[1:] if f"'{part}'" in message), None)
    if path.startswith('config.') and last:
      near = message.partition('Did you mean "')[2].partition('"')[0]
      section = path.split('.')[1]
      section = section if section in (*SECTIONS, *TABLES) else 'fields'
      hint = _MEANT.get(path, _MEANT.get('.'.join(path.split('.')[-2:]), _MEANT.get(last))) or near
      hint = f'did you mean {hint}?' if hint else f'--help={section} lists them'
      return f'{path} is not a field; {hint}'
  return f'command line: {message}'
