"""Runs every point of a sweep, one after the other: `python -m launch --sweep`.

Each point is an ordinary run in its own numbered folder, and is run by the ordinary launcher as a
process of its own: the number of simulated devices is fixed for the life of a process, and memory
that compiled programs leave behind goes with it. This process computes nothing until all are done,
so that it holds no accelerator.
"""

import contextlib
import functools
import importlib
import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from launch import jobs
from launch.jobs import LAUNCHER
from robust_jax import backend, report, stages, workdir
from robust_jax.config import sections
from robust_jax.errors import UserError, suggest
from robust_jax.workdir import interrupts

# A run is in no terminal's foreground, which would end it when the terminal goes.
_SIGNALS = (*interrupts.SIGNALS, signal.SIGHUP)


class Sweep(NamedTuple):
  """What is to be run.

  Attributes:
    points: list of {field: value}.
    configs: the resolved config of each.
    study: the module of `robust_jax.studies` that is applied to the finished runs; None: they are
      compared (`report.compare`).
  """

  points: list[dict]
  configs: list[dict]
  study: ModuleType | None


def read(file, load, overridden=(), several=None):
  """The Sweep of a config file, or of several values of fields.

  Args:
    file: the `experiments.ConfigFile`. Its sweep() returns a list of points {field: value}, with
      dotted names without `config.`; 'config', as 'configs/digits.py:trades', names another
      experiment that the point is of. Its STUDY, if there is one, names a module of
      `robust_jax.studies`.
    load: name of an experiment, or None for that of the file -> its ConfigDict with the overrides
      of the command line.
    overridden: the fields that these set.
    several: {field: values}; if there are any, the points are all combinations of these, and not
      those of the file.

  Raises:
    UserError: there is no such sweep; a field or value that is not valid, or that the command line
      sets as well; two points that are the same; or the study cannot be made of it.
  """
  name, points = ':'.join([str(file.path), *file.names]), file.scope.get('sweep', lambda *_: ())
  points = ([dict(zip(several, values)) for values in itertools.product(*several.values())]
            if several else list(points(*file.names) or ()))
  if not points:
    raise UserError(f'--sweep: {name} has no sweep() that returns {{field: value}} of every run; '
                    '--config.FIELD=A,B,... of a number makes one')
  configs, load = [], functools.cache(load)
  for number, point in enumerate(points):
    if not isinstance(point, dict) or not all(isinstance(field, str) for field in point):
      raise UserError(f'--sweep: {name}: a point must be {{field: value}}, got {point!r}')
    try:
      config = sections.resolve(_at(point, load(point.get('config')), overridden))
    except UserError as error:
      raise UserError(f'sweep() point {number} ({describe(point)}): {error}') from None
    if config in configs:
      raise UserError(f'sweep() points {configs.index(config)} and {number} are the same config '
                      f'({describe(point)})')
    configs.append(config)
  study = None if several else file.scope.get('STUDY')
  if study:  # Imported for it alone, as it draws: that takes half a second.
    study = importlib.import_module(f'robust_jax.studies.{study}')
    study.check(configs)
  return Sweep(points, configs, study)


def _at(point, config, overridden):
  """The ConfigDict of a point."""
  config = config.copy_and_resolve_references()
  for field, value in point.items():
    if field == 'config':
      continue
    for other in overridden:
      if f'{field}.'.startswith(f'{other}.') or f'{other}.'.startswith(f'{field}.'):
        raise UserError(f'--config.{other} is given, but sweep() sets config.{field} of each run')
    section = config
    for name in field.split('.'):
      names = list(section) if isinstance(section, ConfigDict) else []
      if name not in names:
        raise UserError(f'config.{field} is not a field' + suggest(name, names))
      parent, section = section, section[name]
    try:
      parent[name] = value.item() if isinstance(value, np.generic) else value
    except (TypeError, ValueError) as error:
      raise UserError(f'config.{field} must be of type {type(section).__name__}, got '
                      f'{value!r}') from error
  return config


def describe(point):
  """A point on one line: `configs/digits.py:trades, method.attack=pgd, seed=1`."""
  # Of a section, such as component('method', ...), its name.
  show = lambda value: value.get('name', value) if isinstance(value, dict | ConfigDict) else value
  return ', '.join(str(value) if field == 'config' else
                   f'{field}={" ".join(str(show(value)).split())}'
                   for field, value in point.items()) or 'the config as it is'


def run(sweep, folder, wanted, redo=(), *, num_devices=0, launcher=LAUNCHER):
  """Runs what is not finished of a sweep, and writes and prints what is made of all.

  Args:
    sweep: Sweep.
    folder: its runs are in 000, 001, ... of this one.
    wanted: names of the stages to run.
    redo: of these, the ones that are to run anew.
    num_devices: as the flag.
    launcher: words of the command that runs one.

  Returns:
    The exit status: 0, or 1 if a run failed.

  Raises:
    UserError: a folder that holds something else, or a run of another config.
    Interrupted: a signal came, to this process or to the run; what it ran is stopped.
  """
  folder = Path(folder)
  folders = _folders(sweep, folder)
  failed = []
  with workdir.locked(folder):
    _prepare(sweep, folder, wanted, redo)
    for number, (place, point) in enumerate(zip(folders, sweep.points), 1):
      title = f'[{number}/{len(folders)}] {place}: {describe(point)}'
      if stages.finished(place, wanted):
        print(f'{title}: done already')
        continue
      print(title, flush=True)
      status = _run_child([*launcher, *_words(place, wanted, num_devices)])
      if status == interrupts.Interrupted.exit_status:
        raise interrupts.Interrupted(str(place))
      if status:
        failed.append(f'{place} (exit status {status})')
        print(f'{failed[-1]} failed; the sweep goes on', file=sys.stderr, flush=True)
    page = None
    if sweep.study and not failed:
      backend.tune()  # Settings of this process, before it computes anything.
      page, summary = sweep.study.compare(folder, num_devices)
    elif not sweep.study and len(failed) < len(folders):
      page, summary = report.compare([folder])
    if page:
      print('', summary, f'report: {page}', sep='\n')
    if failed:
      print(f'error: {len(failed)} of {len(folders)} runs failed: {", ".join(failed)}; the same '
            'command tries them again', file=sys.stderr)
    return 1 if failed else 0


def submit(sweep, folder, wanted, redo=(), *, submission, num_devices=0, launcher=LAUNCHER):
  """Submits what is neither finished nor under way of a sweep, and prints the table of all.

  Args:
    submission: `jobs.Submission`.

  The others are those of `run`.

  Raises:
    UserError: as `run`, and as `jobs.submit`.
  """
  folder = Path(folder)
  tasks = [jobs.Task(place.name, f'{place.name} {describe(point)}',
                     [*launcher, *_words(place, wanted, num_devices)])
           for place, point in zip(_folders(sweep, folder), sweep.points)]
  counts = jobs.submit(folder, tasks, wanted, redo, submission,
                       functools.partial(_prepare, sweep, folder, wanted, redo))
  if counts == {'done': len(tasks)}:
    print('the same command without --submit compares them')


def _folders(sweep, folder):
  return [folder / f'{number:03d}' for number in range(len(sweep.points))]


def _words(place, wanted, num_devices):
  """What the command of a point says."""
  return [f'--workdir={place}', f'--stages={",".join(s for s in stages.STAGES if s in wanted)}',
          f'--devices={num_devices}']


def _prepare(sweep, folder, wanted, redo, under_way=()):
  """Checks every folder, then makes them ready, so that nothing runs before a refusal.

  Those whose names are in `under_way` are left as they are.
  """
  folders = _folders(sweep, folder)
  names = [path.name for path in folder.iterdir()
           if path.name not in (workdir.LOCK, jobs.FOLDER) and path.suffix != '.new']
  if names and report.SWEEP not in names:
    raise UserError(f'--workdir is {folder}, which must be empty, new or of a sweep; it holds '
                    f'{min(names)} but no {report.SWEEP}')
  for place, config in zip(folders, sweep.configs):
    if place.exists():
      with contextlib.nullcontext() if place.name in under_way else workdir.locked(place):
        sections.check_workdir(place, config, redo)
  # Before the folders: without it this one would not be known as a sweep's.
  workdir.write_json(folder / report.SWEEP, {'runs': [
      {'workdir': place.name, 'point': json.loads(json.dumps(point, default=_plain))}
      for place, point in zip(folders, sweep.points)]})
  for place, config in zip(folders, sweep.configs):
    if place.name in under_way:
      continue
    with workdir.locked(place):
      workdir.set_aside(place, redo)
      if not stages.finished(place, wanted):
        workdir.write_json(place / 'config.json', config)


def _plain(value):
  """A NumPy scalar, or a section of a config, as JSON has it."""
  return value.item() if isinstance(value, np.generic) else value.to_dict()


def _run_child(words):
  """The exit status of a process; what this one is signalled meanwhile, that one is too.

  Raises:
    Interrupted: there was a signal.
  """
  received, passed_on = [], 0
  # A signal that is ignored, as under nohup, stays ignored.
  before = {number: signal.signal(number, lambda number, frame: received.append(number))
            for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
  try:
    # In a group of its own: a Ctrl-C in a terminal would otherwise reach it twice, from there and
    # from here, and the second signal ends a run without saving.
    process = subprocess.Popen(words, process_group=0)
    while process.poll() is None:
      for number in received[passed_on:]:
        # A run saves on those that it handles.
        process.send_signal(number if number in interrupts.SIGNALS else signal.SIGTERM)
        passed_on += 1
      time.sleep(0.05)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  if received:
    raise interrupts.Interrupted(signal.Signals(received[0]).name)
  return process.returncode
