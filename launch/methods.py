"""Every training method on digits, in one table: `python -m launch.methods`.

It trains each experiment of configs/digits.py, at every point of its sweep() but for seeds, with
several seeds under the settings of configs/methods.py, attacks and certifies it, and writes
table.md|.csv|.tex, table.png and the page table.html. A new config is a new row. What is finished
is not run again; what fails is named, and the others go on.

  python -m launch.methods [--workdir=runs/methods] [--configs=NAME,...] [--seeds=3] [--devices=N]
                           [--config.FIELD=VALUE ...] [--write-docs]
"""

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from configs import base
from launch import experiments, flags, process, sweep
from robust_jax import stages, workdir
from robust_jax.config import sections
from robust_jax.errors import UserError, suggest
from robust_jax.studies import methods
from robust_jax.workdir import interrupts

EXPERIMENTS = 'configs/digits.py'
SETTINGS = 'configs/methods.py'
DOCS = Path('docs/methods.md')


class Row(NamedTuple):
  """A row of the table.

  Attributes:
    name: the experiment's, with the fields of the point of its sweep().
    configs: the resolved config of each seed.
  """

  name: str
  configs: list[dict]

  def folders(self, folder):
    """The workdir of each seed."""
    place = Path(folder) / re.sub(r'[^\w.=-]+', '_', self.name)
    return [place / str(config['seed']) for config in self.configs]


def main(argv):
  options, words = parse(argv)
  rows = [row for name in options.configs for row in read_rows(name, options.seeds, words)]
  failed = run(options.workdir, rows, options.devices)
  if len(failed) < sum(len(row.configs) for row in rows):
    table = methods.compare(options.workdir, {row.name: row.folders(options.workdir)
                                              for row in rows}, failed)
    print('', table.summary, f'report: {table.page}', sep='\n')
    if options.write_docs:
      methods.write_docs(table, DOCS)
      print(f'the table is in {DOCS} now')
  for place, message in failed.items():
    print(f'error: {place} failed: {message}', file=sys.stderr)
  return 1 if failed else 0


def parse(argv):
  """(options, the words that are for every config).

  Raises:
    UserError: a word that is no flag, or a config that is not there.
  """
  parser = argparse.ArgumentParser(
      prog='python -m launch.methods', description=__doc__, allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', default='runs/methods', help='default: %(default)s')
  parser.add_argument('--configs', default='', help=f'names in {EXPERIMENTS}; default: all')
  parser.add_argument('--seeds', type=int, default=3, help='runs a row; default: %(default)s')
  parser.add_argument('--devices', type=int, default=0, help='as of python -m launch')
  parser.add_argument('--write-docs', action='store_true', help=f'put the table into {DOCS} too')
  options, words = parser.parse_known_args(argv[1:])
  for word in words:
    if not re.match(r'--config\.[^=]+=', word):
      raise UserError(f'command line: {word!r} is no flag; --workdir, --configs, --seeds, '
                      '--devices, --write-docs, --config.FIELD=VALUE are allowed')
  for name in ('seeds', 'devices'):
    least = {'seeds': 1, 'devices': 0}[name]
    if getattr(options, name) < least:
      raise UserError(f'--{name} is {getattr(options, name)}; {least} or more is allowed')
  there = sorted(base.experiments(experiments.read(EXPERIMENTS).scope))
  options.configs = list(dict.fromkeys(filter(None, options.configs.split(',')))) or there
  for name in options.configs:
    if name not in there:
      raise UserError(f'--configs has {name!r}; {", ".join(there)} are allowed'
                      + suggest(name, there))
  return options, words


def read_rows(name, num_seeds, words):
  """The rows of a config: one, or one for each point of its sweep() without seeds.

  Raises:
    UserError: a field or value that is not allowed, or that a sweep() or --seeds sets as well.
  """
  config = flags.parse(['launch', f'--config={SETTINGS}:{name}', *words]).config
  try:
    sections.resolve(config)
  except UserError as error:  # What is wrong with the config itself is no matter of a point.
    raise UserError(f'{EXPERIMENTS}:{name}: {error}') from error
  points = []
  file = experiments.read(f'{EXPERIMENTS}:{name}')
  for point in sweep.read_points(file) if file.scope['sweep'](name) else [{}]:
    point = {field: value for field, value in point.items() if field != 'seed'}
    if point not in points:
      points.append(point)
  given = [word.removeprefix('--config.').partition('=')[0] for word in words]
  rows = []
  for point in points:
    ends = {field.rpartition('.')[2]: value for field, value in point.items()}
    label = name + (f', {sweep.describe(ends)}' if point else '')
    seeds = [{**point, 'seed': seed} for seed in range(num_seeds)]
    rows.append(Row(label, sweep.expand(config, seeds, given)))
  return rows


def run(folder, rows, num_devices):
  """Trains, attacks and certifies what is not finished, each run in a process of its own.

  One process for all would not last: what oneDNN compiles leaves memory maps behind, of which the
  system allows 65,530, some 70 runs' worth.

  Returns:
    {workdir: message} of what failed.

  Raises:
    UserError: a folder holds a run with other settings, or is in use.
    Interrupted: a signal came; what was running is saved.
  """
  with workdir.locked(folder):
    todo = [(row.name, place, config) for row in rows
            for place, config in zip(row.folders(folder), row.configs)]
    for _, place, config in todo:
      with workdir.locked(place):
        sections.check_workdir(place, config)
    failed = {}
    for number, (name, place, config) in enumerate(todo, 1):
      title = f'[{number}/{len(todo)}] {name}, seed {config["seed"]}'
      if sweep.finished(place, {*stages.KEPT}):
        print(f'{title}: done already')
        continue
      print(title, flush=True)
      with workdir.locked(place):
        workdir.write_json(place / 'config.json', config)
        command = [*sweep.LAUNCHER, f'--workdir={place}', f'--stages={",".join(stages.KEPT)}',
                   f'--devices={num_devices}']
      status = sweep.run_child(command)
      if status == interrupts.Interrupted.exit_status:
        raise interrupts.Interrupted(str(place))
      if status:
        failed[place] = (f'exit status {status}, of which python -m launch '
                         f'{shlex.quote(f"--workdir={place}")} tells the reason')
        print(f'{title} failed, the others go on', file=sys.stderr, flush=True)
  return failed


if __name__ == '__main__':
  process.run(main)
