"""Logs and runs as tables, figures and pages: `python -m robust_jax.analysis COMMAND PATH ...`.

  table      certified accuracy, average certified radius, cost: one row a log
  envelope   the best certified accuracy over many logs, at each radius, and whose it is
  compare    differences from the first log, on the images that all have
  plot       certified accuracy against radius, as SVG, PDF or PNG
  runs       the page of a run, or of several, with all that was measured
  merge      the logs of all shards of a run (python -m launch --shard=I/N) as its own

A PATH is a workdir, a certify.jsonl or certify.tsv, a published table (`idx label predict radius
correct X
"""

import argparse
import inspect
import math
import os
import shutil
import sys
from pathlib import Path

from robust_jax import analysis, report, terminal
from robust_jax.analysis import found_logs, log_tables
from robust_jax.errors import UserError
from robust_jax.workdir import write_bytes

FORMATS = {'text': analysis.to_text, 'markdown': analysis.to_markdown, 'latex': analysis.to_latex,
           'csv': analysis.to_csv}
EXAMPLES = {
    'table': ('runs/demo', 'runs --radii=0,0.5,1 --format=csv > runs.csv',
              'runs/demo --simultaneous'),
    'envelope': ('runs/sweep', 'logs/cohen/imagenet --radii=0.5,1,1.5,2 --decimals=0'),
    'compare': ('runs/gaussian runs/smoothadv --radii=0.5,1', 'runs/seeds --format=markdown'),
    'plot': ('runs/gaussian runs/smoothadv --output=curves.svg',
             'runs --output=curves.png --intervals'),
    'runs': ('runs/demo', 'runs/sweep runs/other --output=compare.html'),
    'merge': ('runs/demo',)}


class Parser(argparse.ArgumentParser):
  """Mistakes are one line, as everywhere else."""

  def error(self, message):
    raise UserError(f'{message}; see {self.prog} --help')


def make_parser():
  layout = argparse.RawDescriptionHelpFormatter
  parser = Parser(prog='python -m robust_jax.analysis', description=__doc__,
                  formatter_class=layout, allow_abbrev=False,
                  epilog='COMMAND --help has the options and examples of a command.')
  commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True,
                                   help=argparse.SUPPRESS)
  for run in (table, envelope, compare, plot, runs, merge):
    name = run.__name__
    examples = ''.join(f'\n  {parser.prog} {name} {words}' for words in EXAMPLES[name])
    command = commands.add_parser(name, description=inspect.getdoc(run), allow_abbrev=False,
                                  epilog=f'examples:{examples}', formatter_class=layout)
    command.set_defaults(run=run)
    if name == 'merge':
      command.add_argument('path', metavar='DIR', type=os.path.expanduser, help='workdir')
      continue
    if name == 'runs':
      command.add_argument('path', nargs='+', metavar='DIR', type=os.path.expanduser,
                           help="workdir, or a folder of several, as a sweep's")
      command.add_argument('--output', metavar='FILE', type=os.path.expanduser,
                           help='the page on several runs; compare.html, or sweep.html in the '
                           'folder of a sweep, if not given')
      continue
    command.add_argument('path', nargs='+', metavar='PATH', type=os.path.expanduser,
                         help='log, workdir, or folder that is searched')
    command.add_argument('--sigma', type=float, metavar='S',
                         help='noise of certification of published tables, if no path says it')
    command.add_argument('--dataset', metavar='NAME', help='dataset of published tables')
    if name == 'plot':
      command.add_argument('--output', required=True, metavar='FILE', type=os.path.expanduser,
                           help='what is written, .svg, .pdf or .png')
      command.add_argument('--x', choices=('radius', 'p_A'), default='radius',
                           help='what is on the x axis: the certified radius, or p_A, the '
                           'probability of the label under noise that it stands for')
      command.add_argument('--intervals', action='store_true',
                           help='bands of 95%% intervals over images')
    else:
      command.add_argument('--radii', type=_radii, metavar='R,R,...',
                           help='l2 radii, in the units of the logs; up to the largest one '
                           'certified if not given')
      command.add_argument('--format', choices=FORMATS, default='text')
      command.add_argument('--decimals', type=int, choices=range(5), default=1, metavar='N',
                           help='of percentages; 1 if not given')
    if name == 'envelope':
      command.add_argument('--any-split', action='store_true', help='train splits too')
      command.add_argument('--any-noise', action='store_true',
                           help='networks trained with any noise too')
    command.add_argument(
        '--simultaneous', action='store_true',
        help='with probability 1 - alpha NO certificate of a log is false (else: each by itself): '
        'certified anew from the vote counts at alpha / images; needs certify.jsonl')
  return parser


def table(flags):
  """One row a log: certified accuracy in % at each radius with its 95% interval over images,
  average certified radius, abstention, mean draws and seconds an image.
  """
  found = _collect(flags)
  _warn(found_logs.differences(found), but='sigma ')
  _print(flags, found, log_tables.logs_table, """\
Certified accuracy in % at l2 radius r, with its 95% interval over images.
ACR: average certified radius, ≥ where only a grid of radii was decided; abstains: in %;
draws, seconds: mean an image.""")


def envelope(flags):
  """The best certified accuracy in % over many logs of one dataset, at each radius by itself, as
  published tables show it, and the log that attains it. Logs of a train split, those of networks
  trained with another noise than they are certified with, and empty ones are left out and listed.
  Our logs say which they are, published ones by paths as in noise_0.25/test/sigma_0.25.
  """
  found = _without(_collect(flags), lambda one: _no_part(one, flags))
  _warn(found_logs.check_alike(found, same_images=False))
  _warn(found_logs.differences(found), but=('sigma ', 'split '))
  _print(flags, found, log_tables.envelope_table,
         f'Best certified accuracy in % over {len(found)} logs, at each l2 radius by itself.')


def compare(flags):
  """Certified accuracy in % and average certified radius on the images that all logs have, and
  differences from the first log with paired 95% intervals.
  """
  found = _without(_collect(flags), _empty)
  if len(found) < 2:
    raise UserError(f'compare must have two logs or more, got {found[0].path}')
  found_logs.check_alike(found)
  _warn(found_logs.differences(found))
  shared = len(analysis.common_images([one.log for one in found]))
  if shared < 100:
    _warn([f'images that all logs have: {shared}; the intervals are meant for hundreds'])
  _print(flags, found, log_tables.comparison_table, f"""\
Certified accuracy in % at l2 radius r and average certified radius (ACR), on the
images that all {len(found)} logs have: {shared}; [95% interval over images, paired].""")


def plot(flags):
  """Curves of certified accuracy against radius, or against p_A, one colour a log."""
  from robust_jax.report import charts  # matplotlib takes half a second.
  output = Path(flags.output)
  kind = output.suffix.lower().removeprefix('.')
  if kind not in charts.FORMATS or not output.parent.is_dir():
    raise UserError(f'--output must be a .svg, .pdf or .png in a folder that exists, got {output}')
  found = _without(_collect(flags), _empty)
  _warn(found_logs.differences(found), but='sigma ')
  folder, names = found_logs.names([one.path for one in found])
  sigmas = None
  if flags.x == 'p_A':
    sigmas = [one.sigma for one in found]
    if None in sigmas:
      raise UserError(f'{found[sigmas.index(None)].path}: --x=p_A needs its noise; give --sigma')
  chart = charts.certified_chart([one.log for one in found], names, flags.intervals, sigmas)
  try:
    write_bytes(output, charts.render(charts.draw(chart), kind))
  except OSError as error:
    raise UserError(f'--output: {output} cannot be written ({error.strerror})') from error
  print(f'{len(found)} log{"s" * (len(found) > 1)}{f" in {folder}" if folder else ""}: '
        f'{flags.output}')


def runs(flags):
  """Of one workdir its page, report.html, with tables/ and figures/; of several, or of a folder of
  them, as a sweep's, one page that compares them, with mean ± 95% interval over seeds, and its
  tables and figures.
  """
  first = flags.path[0]
  if len(flags.path) == 1 and not report.is_sweep(first) and not report.runs_in(first):
    if flags.output:
      raise UserError(f'--output needs several workdirs, got {first}, whose page is its '
                      'report.html')
    page, summary = report.build(first), report.summary(first)
  else:
    page, summary = report.compare(flags.path, flags.output)
  print(summary, f'report: {page}', sep='\n')


def merge(flags):
  """Joins what the shards of a workdir have found (DIR/shards, python -m launch --shard=I/N) to its
  own logs, those of one process. What does not go together, is missing or is there twice is named.
  """
  from robust_jax.stages import shards  # Here, as it brings jax and the models along.

  print('\n'.join(shards.merge(flags.path)))
  print(f'python -m launch --workdir={flags.path} --stages=report makes the page')


def _collect(flags):
  """The logs of the paths, with warnings about what a reader of their figures should know."""
  given = {name: getattr(flags, name) for name in ('sigma', 'dataset')
           if getattr(flags, name) is not None}
  found, skipped = found_logs.collect(flags.path, given)
  for line in skipped:
    _tell('skipped', line)
  _warn(line for one in found for line in one.remarks)
  _warn(found_logs.stopped_early(found))
  return [_simultaneous(one) for one in found] if flags.simultaneous else found


def _simultaneous(one):
  if not len(one.log.idx):
    return one
  if one.votes is None:
    raise UserError(f'--simultaneous must have logs with counts0 and counts, as certify.jsonl, got '
                    f'{one.path}')
  return one._replace(log=analysis.simultaneous(one.log, one.votes, path=one.path))


def _without(found, reason):
  """The logs without those for which there is a reason to leave them out; these are listed."""
  reasons = [reason(one) for one in found]
  if all(reasons):
    raise UserError(f'no log is left: {found[0].path}: {reasons[0]}')
  for name, text in zip(found_logs.names([one.path for one in found])[1], reasons):
    if text:
      _tell('left out', f'{name}: {text}')
  return [one for one, text in zip(found, reasons) if not text]


def _empty(one):
  return '' if len(one.log.idx) else 'no images'


def _no_part(one, flags):
  """Why a log is no part of the envelope; '' of one that is."""
  if one.train_split and not flags.any_split:
    return 'train split (--any-split includes it)'
  if found_logs.other_noise(one) and not flags.any_noise:
    return (f'trained with noise {one.training_noise:g}, certified with {one.sigma:g} '
            '(--any-noise includes it)')
  return _empty(one)


def _print(flags, found, make_table, caption):
  """Prints the table that `make_table` of `log_tables` makes of the logs."""
  radii = flags.radii or analysis.round_radii([one.log for one in found])
  _warn(found_logs.off_grid(found, radii))
  paths, programs = [one.path for one in found], flags.format == 'csv'
  # Whole paths for programs, short ones for readers.
  folder, names = ('', list(map(str, paths))) if programs else found_logs.names(paths)
  values = make_table(found, names, radii, decimals=flags.decimals, separate=programs)
  if programs:
    print(analysis.to_csv(values), end='')
    return
  if flags.simultaneous:
    caption += '\nWith probability 1 - alpha no certificate of a log is false: alpha / images each.'
  if folder:
    caption += f'\nLogs in {folder}'
  if flags.format == 'latex':
    caption = '\n'.join(f'% {line}' for line in caption.splitlines())
  values = values._replace(rows=[['–' if cell is None else cell for cell in row]
                                 for row in values.rows])
  options = {}
  if flags.format == 'text' and sys.stdout.isatty():
    options['width'] = shutil.get_terminal_size().columns
  print(caption, FORMATS[flags.format](values, **options), sep='\n\n', end='')


def _radii(text):
  try:
    radii = [float(part) for part in text.split(',')]
  except ValueError:
    radii = [math.nan]
  if not all(0 <= radius < math.inf for radius in radii):
    raise argparse.ArgumentTypeError(f'must be numbers >= 0 with commas between them, got {text!r}')
  return radii


def _warn(lines, but=()):
  for line in lines:
    if not line.startswith(but):
      _tell('warning', line)


def _tell(kind, line):
  print(f'{kind}: {line}', file=sys.stderr)


def main(argv=None):
  try:
    flags = make_parser().parse_args(argv)
    flags.run(flags)
    sys.stdout.flush()
  except UserError as error:
    _tell('error', error)
    sys.exit(error.exit_status)


if __name__ == '__main__':
  terminal.prepare(output_is_all=True)
  main()
