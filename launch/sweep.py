"""Runs every point of a config file's sweep(), one after the other: `python -m launch --sweep`.

Each point is an ordinary run in its own numbered folder, and is run by the ordinary launcher as a
process of its own, as the number of simulated devices is fixed for the life of a process. This one
computes nothing, so that it holds no accelerator.
"""

import collections
import contextlib
import difflib
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from robust_jax import report, stages, workdir
from robust_jax.config import sections
from robust_jax.errors import UserError
from robust_jax.workdir import interrupts

LAUNCHER = (sys.executable, '-m', 'launch')
# A run is in no terminal's foreground, which would end it when the terminal goes.
_SIGNALS = (*interrupts.SIGNALS, signal.SIGHUP)


def read_points(file):
  """The {field: value} of every point, from the sweep() of an `experiments.ConfigFile`.

  Raises:
    UserError: there is no sweep(), or it gives something else.
  """
  sweep, name = file.scope.get('sweep'), ':'.join([str(file.path), *file.names])
  found = list(sweep(*file.names)) if sweep else []
  if not found:
    raise UserError(f'--sweep: {name} has no sweep() with {{field: value}} of every run')
  for point in found:
    if not isinstance(point, dict) or not all(isinstance(field, str) for field in point):
      raise UserError(f'--sweep: {name} gives the point {point!r}; a dict of field names and '
                      'values is needed')
  return found


def expand(config, points, overridden=()):
  """The resolved config of every point.

  Args:
    config: ConfigDict of get_config() with the overrides of the command line.
    points: list of {field: value}, dotted names without `config.`.
    overridden: the fields that the command line sets.

  Raises:
    UserError: a field or value that is not allowed, a field that the command line sets as well,
      or two points that are the same.
  """
  configs = []
  for number, point in enumerate(points):
    changed = config.copy_and_resolve_references()
    for field, value in point.items():
      _check_not_overridden(field, overridden)
      _set(changed, field, value.item() if isinstance(value, np.generic) else value, number)
    try:
      resolved = sections.resolve(changed)
    except UserError as error:
      raise UserError(f'sweep() point {number} ({describe(point)}): {error}') from None
    if resolved in configs:
      raise UserError(f'sweep() points {configs.index(resolved)} and {number} are the same config '
                      f'({describe(point)}); different ones are allowed')
    configs.append(resolved)
  return configs


def describe(point):
  """A point on one line: `method.num_noise=4, seed=1`."""
  # Of a section, such as component('method', ...), its name.
  show = lambda value: value.get('name', value) if isinstance(value, dict | ConfigDict) else value
  return ', '.join(f'{field}={" ".join(str(show(value)).split())}'
                   for field, value in point.items()) or 'the config as it is'


def run(folder, points, configs, wanted, redo=(), *, flags=(), launcher=LAUNCHER, compared=True):
  """Runs what is not finished of a sweep, and writes and prints the summary of all.

  Args:
    folder: of the sweep; its runs are in 000, 001, ...
    points: list of {field: value}.
    configs: the resolved config of each.
    wanted: names of the stages to run, 'report' included.
    redo: of these, the ones that are to run anew.
    flags: further words for the launcher of each run.
    launcher: words of the command that runs one.
    compared: whether the summary is written and printed.

  Returns:
    The exit status: 0, or 1 if a run failed.

  Raises:
    UserError: a folder that holds something else, or a run of another config.
    Interrupted: a signal came, to this process or to the run; what it ran is stopped.
  """
  folder = Path(folder)
  with workdir.locked(folder):
    return _run(folder, points, configs, wanted, redo, flags, launcher, compared)


def _run(folder, points, configs, wanted, redo, flags, launcher, compared):
  folders = [folder / f'{number:03d}' for number in range(len(points))]
  _prepare(folder, folders, points, configs, wanted, redo)
  order = [stage for stage in stages.STAGES if stage in wanted]
  failed = []
  for number, (place, point) in enumerate(zip(folders, points), 1):
    title = f'[{number}/{len(points)}] {place}: {describe(point)}'
    if finished(place, wanted):
      print(f'{title}: done already')
      continue
    print(title, flush=True)
    status = run_child([*launcher, f'--workdir={place}', f'--stages={",".join(order)}', *flags])
    if status == interrupts.Interrupted.exit_status:
      raise interrupts.Interrupted(str(place))
    if status:
      failed.append(f'{place} (exit status {status})')
      print(f'{failed[-1]} failed; the sweep goes on', file=sys.stderr, flush=True)
  if compared and len(failed) < len(points):
    page, summary = report.compare([folder])
    print('', summary, f'report: {page}', sep='\n')
  if failed:
    print(f'error: {len(failed)} of {len(points)} runs failed: {", ".join(failed)}; the same '
          'command tries them again', file=sys.stderr)
  return 1 if failed else 0


def _check_not_overridden(field, overridden):
  for other in overridden:
    if f'{field}.'.startswith(f'{other}.') or f'{other}.'.startswith(f'{field}.'):
      raise UserError(f'--config.{other} is given, but sweep() sets {field} of each run; one of '
                      'the two is allowed')


def _set(config, field, value, number):
  """Sets a dotted field of a ConfigDict, as --config.FIELD=VALUE would."""
  section, path = config, f'sweep() point {number}: config.{field}'
  *sections, last = field.split('.')
  for name in [*sections, last]:
    fields = list(section) if isinstance(section, ConfigDict) else []
    if name not in fields:
      near = difflib.get_close_matches(name, fields, 1)
      raise UserError(f'{path} is not a field; ' + (
          f'did you mean {near[0]}?' if near else f'allowed: {", ".join(fields) or "none"}'))
    parent, section = section, section[name]
  try:
    parent[last] = value
  except (TypeError, ValueError) as error:
    raise UserError(f'{path} is {value!r}; the type that the config has, '
                    f'{type(section).__name__}, is allowed') from error


def _prepare(folder, folders, points, configs, wanted, redo):
  """Checks every folder, then makes them ready, so that nothing runs before a refusal."""
  names = [path.name for path in folder.iterdir()
           if path.name != workdir.LOCK and path.suffix != '.new']
  if names and report.SWEEP not in names:
    raise UserError(f'--workdir is {folder}, which holds {min(names)} but no {report.SWEEP}; a '
                    'new or empty folder, or one of a sweep, is allowed')
  record = {'runs': [{'workdir': place.name,
                      'point': json.loads(json.dumps(point, default=_plain))}
                     for place, point in zip(folders, points)]}
  if not names:  # Before it holds anything else, by which it would not be known any more.
    workdir.write_json(folder / report.SWEEP, record)
  for place, config in zip(folders, configs):
    with workdir.locked(place):
      sections.check_workdir(place, config, redo)
  workdir.write_json(folder / report.SWEEP, record)
  for place, config in zip(folders, configs):
    with workdir.locked(place):
      workdir.set_aside(place, redo)
      if not finished(place, wanted):
        workdir.write_json(place / 'config.json', config)


def _plain(value):
  """A NumPy scalar, or a section of a config, as JSON has it."""
  return value.item() if isinstance(value, np.generic) else value.to_dict()


def finished(place, wanted):
  """Whether a run has all the wanted stages behind it; verify and label never are."""
  done = {stage for stage, record in workdir.stages(place).items() if record['status'] == 'done'}
  if (place / 'report.html').exists():
    done.add('report')
  return wanted <= done


def run_child(words):
  """The exit status of a process; what this one is signalled meanwhile, that one is too.

  Raises:
    Interrupted: there was a signal.
  """
  process, received, waiting = None, [], collections.deque()

  def pass_on():
    with contextlib.suppress(IndexError):  # Each signal once, also when interrupted by the next.
      while True:
        number = waiting.popleft()
        # A run saves on those that it handles.
        process.send_signal(number if number in interrupts.SIGNALS else signal.SIGTERM)

  def handle(number, frame):
    del frame
    received.append(number)
    waiting.append(number)
    if process is not None:
      pass_on()

  with _handling(handle):
    # In a group of its own: a Ctrl-C in a terminal would otherwise reach it twice, from there and
    # from here, and the second signal ends a run without saving.
    process = subprocess.Popen(words, process_group=0)
    pass_on()
    status = process.wait()
  if received:
    raise interrupts.Interrupted(signal.Signals(received[0]).name)
  return status


@contextlib.contextmanager
def _handling(handler):
  # A signal that is ignored, as under nohup, stays ignored.
  before = {number: signal.signal(number, handler) for number in _SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN}
  try:
    yield
  finally:
    for number, old in before.items():
      signal.signal(number, old)
