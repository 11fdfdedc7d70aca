"""Measures robust_jax beside PyTorch and writes benchmarks/results/NAME.json.

Contestants do the same work in processes of their own and take turns: a round asks each for one
timed block, and rounds go to and fro, so that what else the machine does meets all alike.
"""

import argparse
import contextlib
import datetime
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import hardware, results, table
from benchmarks.process import Worker, WorkerError, jemalloc, take_turns
from benchmarks.work import (
    CONTESTANTS,
    DEFAULT_CONTESTANTS,
    DEFAULT_MODELS,
    LIBRARY_TASKS,
    NOISES,
    PACKAGES,
    SIZES,
    STEPS,
    TASKS,
    plan,
)
from robust_jax import terminal


def parse(argv):
  """The command line, checked; a mistake ends the program with one line."""
  parser = argparse.ArgumentParser(
      prog='python -m benchmarks', description=__doc__, allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      epilog='Lists are written with commas. A package that is not installed is named and its '
             'contestants left out. Flags and environment variables (XLA_FLAGS, OMP_...) reach '
             'the contestants and the results file, except LD_PRELOAD and MALLOC_CONF.')
  parser.error = lambda message: stop(message)
  add = parser.add_argument
  add('--suite', default='cpu', help='cpu (default) or gpu: networks, sizes and contestants')
  add('--models', help=by_suite(SIZES, DEFAULT_MODELS))
  add('--tasks', help=f'all (default) or some of {", ".join(TASKS)}')
  add('--contestants', help=by_suite(CONTESTANTS, DEFAULT_CONTESTANTS))
  add('--noises', default=','.join(map(str, NOISES)), help='m of smoothadv (default %(default)s)')
  add('--steps', default=','.join(map(str, STEPS)), help='T of smoothadv (default %(default)s)')
  add('--rounds', type=int, default=5, help='blocks of each contestant (default %(default)s)')
  add('--seconds', type=float, default=2., help='length of a block (default %(default)s)')
  add('--name', help='of the results file (default: hardware and date)')
  add('--quick', action='store_true', help='tiny batches, one short round: does it run?')
  add('--device', help='cpu or gpu (default: as the suite); --suite=gpu --device=cpu tries the '
                       "GPU's suite without one")
  add('--python-ours', type=os.path.expanduser, default=sys.executable,
      help='the interpreter that has jax')
  add('--python-torch', type=os.path.expanduser, default=sys.executable,
      help='the interpreter that has PyTorch')
  options = parser.parse_args(argv)
  options.suite = one_of('--suite', options.suite, CONTESTANTS)
  options.device = one_of('--device', options.device or options.suite, ('cpu', 'gpu'))
  suite = options.suite
  for field, known, default in (
      ('models', SIZES[suite], DEFAULT_MODELS[suite]), ('tasks', TASKS, TASKS),
      ('contestants', CONTESTANTS[suite], DEFAULT_CONTESTANTS[suite])):
    text = getattr(options, field)
    names = default if text is None else text.split(',')
    setattr(options, field, [one_of(f'--{field}', name, known) for name in names])
  options.noises = counts('--noises', options.noises)
  options.steps = counts('--steps', options.steps)
  for flag, path in (('ours', options.python_ours), ('torch', options.python_torch)):
    if shutil.which(path) is None:
      stop(f'--python-{flag} must be an interpreter that can be run, got {path!r}')
  if options.rounds < 1:
    stop(f'--rounds must be at least 1, got {options.rounds}')
  if not options.seconds >= 0:
    stop(f'--seconds must be at least 0, got {options.seconds:g}')
  if options.quick:
    options.rounds, options.seconds = 1, 0.
    options.noises, options.steps = options.noises[:1], options.steps[:1]
  return options


def by_suite(known, default):
  """What a list may hold, and what it holds if it is not given."""
  return '; '.join(
      f'{suite}: {", ".join(names)}' + ''.join(f' (not by default: {name})' for name in names
                                               if name not in default[suite])
      for suite, names in known.items())


def stop(message):
  """Ends the program as a mistake on the command line does."""
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)


def one_of(flag, name, known):
  if name not in known:
    stop(f'{flag} must be of {", ".join(known)}, got {name!r}')
  return name


def counts(flag, text):
  if not all(word.isdigit() and int(word) for word in text.split(',')):
    stop(f'{flag} must be numbers from 1 with commas between them, got {text!r}')
  return [int(word) for word in text.split(',')]


def main(argv):
  options = parse(argv)
  pythons = {kind: options.python_ours if kind == 'ours' else options.python_torch
             for kind in PACKAGES}
  contestants, missing = available(options, pythons)
  if not contestants:
    stop(f'--contestants: none can run; missing: {", ".join(missing.values())}')
  record = {
      'date': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
      'command': ' '.join(['python -m benchmarks', *argv]),
      'suite': options.suite, 'device': options.device, 'quick': options.quick,
      'rounds': options.rounds, 'block_seconds': options.seconds,
      'hardware': hardware.describe(options.device),
      'versions': {name: hardware.versions(pythons[name]) for name in ('torch', 'ours')},
      'missing': missing, 'contestants': {name: c._asdict() for name, c in contestants.items()},
      'lines': [],
  }
  path = results.path(options.name or hardware.name(record['hardware'], record['date']))
  print(f'{len(contestants)} contestants: {", ".join(contestants)} -> {path}', flush=True)
  for name, package in missing.items():
    print(f'{name} is left out: {package} is not installed')
  works = plan(options.suite, options.models, options.tasks, options.noises, options.steps,
               options.quick)
  with tempfile.TemporaryDirectory() as folder:
    run = Run(options, pythons, contestants, folder)
    for number, work in enumerate(works, 1):
      print(f'[{number}/{len(works)}] {work.model} {work.label}', flush=True)
      line = run.line(work)
      record['lines'].append(line)
      results.write(path, record)
      print(table.brief(record, line), flush=True)
    run.close()
  print('', table.markdown(record), '', f'results: {path}', sep='\n')
  return 0


def available(options, pythons):
  """({name: Contestant} that can run, {name: package that is missing})."""
  able, missing = {}, {}
  for name in options.contestants:
    contestant = CONTESTANTS[options.suite][name]
    found = hardware.versions(pythons[contestant.kind])
    lacks = [package for package in PACKAGES[contestant.kind] if package not in found]
    # Ours runs all the same, as the demo does.
    if contestant.kind != 'ours' and contestant.malloc == 'jemalloc' and not jemalloc():
      lacks.append('libjemalloc.so.2')
    if lacks:
      missing[name] = lacks[0]
    else:
      able[name] = contestant
  return able, missing


class Run:
  """Workers, and what they share."""

  def __init__(self, options, pythons, contestants, folder):
    self.options, self.pythons, self.contestants = options, pythons, contestants
    self.folder = Path(folder)
    # One of each framework and precision measures the machine's peak, beside every round.
    self.gauges = {c[:2]: (c, self.worker(c)) for c in contestants.values()
                   if c.kind in ('ours', 'torch')}

  def worker(self, contestant):
    return Worker(self.pythons[contestant.kind], self.options.device, contestant.malloc)

  def close(self):
    for _, process in self.gauges.values():
      process.close()

  def weights(self, model):
    """A file of PyTorch weights for all contestants; None where PyTorch is not among them."""
    path = self.folder / f'{model}.pth'
    rivals = [c for c in self.contestants.values() if 'torch' in PACKAGES[c.kind]]
    if rivals and not path.exists():
      process = self.worker(rivals[0])
      try:
        process.ask('weights', model=model, path=str(path))
      finally:
        process.close()
    return str(path) if rivals else None

  def peaks(self):
    """{precision: [FLOP/s, bytes/s]}, the best of the frameworks."""
    found = {}
    for contestant, process in self.gauges.values():
      peak = process.ask('peak', contestant=contestant, device=self.options.device,
                         measured_seconds=min(self.options.seconds, 0.2))
      best = found.get(contestant.precision, peak)
      found[contestant.precision] = [max(pair) for pair in zip(best, peak)]
    return found

  def line(self, work):
    """One line of the results: a work by all who can do it."""
    line = {'work': work._asdict(), 'results': {}, 'failed': {}, 'peaks': [],
            'others_busy': hardware.busy_share()}
    running, checks = {}, {}

    @contextlib.contextmanager
    def surviving(name):
      """A contestant whose worker dies here is out of this line."""
      try:
        yield running[name]
      except WorkerError as error:
        print(f'  {name}: {error}', flush=True)
        line['failed'][name] = str(error)
        line['results'].pop(name, None)
        running.pop(name).close()

    for name, contestant in self.contestants.items():
      if work.task in LIBRARY_TASKS.get(contestant.kind, TASKS):
        running[name] = self.worker(contestant)
        with surviving(name) as process:
          found = process.ask('start', work=work, contestant=contestant,
                              weights=self.weights(work.model), device=self.options.device)
          line['results'][name] = {**found, 'seconds': []}
    for name in list(running):
      path = self.folder / f'{name}.npz'
      with surviving(name) as process:
        process.ask('check', path=str(path))
        with np.load(path) as arrays:
          checks[name] = dict(arrays)
    line['differences'] = results.differences(checks)
    for name in list(running):
      with surviving(name) as process:
        line['results'][name]['calls'] = process.ask('settle', block_seconds=self.options.seconds)
    for number in range(self.options.rounds):
      line['peaks'].append(self.peaks())
      for name in take_turns(running, number):
        with surviving(name) as process:
          found = line['results'][name]
          found['seconds'].append(process.ask('seconds', calls=found['calls']))
    for name in list(running):
      with surviving(name) as process:
        line['results'][name]['peak_bytes'] = process.ask('memory')
    for process in running.values():
      process.close()
    return line


if __name__ == '__main__':
  terminal.prepare()
  try:
    sys.exit(main(sys.argv[1:]))
  except WorkerError as error:
    stop(f'a worker that all lines need: {error}')
  except KeyboardInterrupt:
    sys.exit(130)
