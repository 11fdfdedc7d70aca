"""Certification logs as tables and figures: `python -m robust_jax.analysis COMMAND PATH ...`.

A PATH is a workdir, a certify.jsonl or certify.tsv, a published table (`idx label predict radius
correct time`), or a folder that is searched for all of these.

  table      certified accuracy, average certified radius, cost: one row a log
  envelope   the best certified accuracy over many logs, at each radius, and whose it is
  compare    differences from the first log, on the images that all have
  plot       certified accuracy against radius, as SVG or PNG
"""

import argparse
import math
import shutil
import sys

from robust_jax import analysis
from robust_jax.analysis import curves, listings, published_logs
from robust_jax.errors import UserError

FORMATS = {'text': analysis.to_text, 'markdown': analysis.to_markdown, 'latex': analysis.to_latex,
           'csv': analysis.to_csv}
ABOUT = {
    'table': """\
One row a log: certified accuracy in % at each radius with its 95% interval over images, average
certified radius, abstention, mean draws and seconds an image.""",
    'envelope': """\
The best certified accuracy in % over many logs of one dataset, at each radius by itself, as
published tables show it, and the log that attains it.""",
    'compare': """\
Certified accuracy in % and average certified radius on the images that all logs have, and
differences from the first log with paired 95% intervals.""",
    'plot': 'Curves of certified accuracy against radius, one colour a log.',
}
EXAMPLES = {
    'table': """examples:
  python -m robust_jax.analysis table runs/demo
  python -m robust_jax.analysis table runs --radii=0,0.5,1 --format=csv > runs.csv
  python -m robust_jax.analysis table runs/demo --simultaneous""",
    'envelope': """examples:
  python -m robust_jax.analysis envelope runs/sweep
  python -m robust_jax.analysis envelope logs/cohen/imagenet --radii=0.5,1,1.5,2 --decimals=0

Logs of a train split, those of networks trained with another noise than they are certified with,
and empty ones are left out and listed. Our logs and their workdirs say which they are, published
ones by paths as in cifar10/resnet110/noise_0.25/test/sigma_0.25.""",
    'compare': """examples:
  python -m robust_jax.analysis compare runs/gaussian runs/smoothadv --radii=0.5,1
  python -m robust_jax.analysis compare runs/seeds --format=markdown""",
    'plot': """examples:
  python -m robust_jax.analysis plot runs/gaussian runs/smoothadv --output=curves.svg
  python -m robust_jax.analysis plot runs --output=curves.png --intervals""",
}


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
  for run in (table, envelope, compare, plot):
    name = run.__name__
    command = commands.add_parser(name, description=ABOUT[name], epilog=EXAMPLES[name],
                                  formatter_class=layout, allow_abbrev=False)
    command.set_defaults(run=run)
    command.add_argument('path', nargs='+', metavar='PATH',
                         help='log, workdir, or folder that is searched')
    if name == 'plot':
      command.add_argument('--output', required=True, metavar='FILE',
                           help='what is written, .svg or .png')
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
  found = _collect(flags)
  _warn(published_logs.mixed(found))
  _warn(line for line in published_logs.differences(found) if not line.startswith('sigma '))
  folder, names = _names(found, flags)
  values = listings.logs_table(found, names, _radii_of(found, flags), decimals=flags.decimals,
                               separate=flags.format == 'csv')
  _print(values, flags, folder, """\
Certified accuracy in % at l2 radius r, with its 95% interval over images.
ACR: average certified radius, ≥ where only a grid of radii was decided; abstains: in %;
draws, seconds: mean an image.""")


def envelope(flags):
  found = _without(_collect(flags), lambda source: _no_part(source, flags))
  published_logs.check_dataset(found)
  other = published_logs.other_labels(found)
  if other:
    first, second, idx = other
    text = f'idx {idx} has one label in {first.path} and another in {second.path}'
    if None in (first.dataset, second.dataset):
      raise UserError(f'{text}; logs of one dataset are allowed')
    _warn([f'{text}: they number the images differently'])
  _warn(line for line in published_logs.differences(found) if not line.startswith('sigma '))
  folder, names = _names(found, flags)
  values = listings.envelope_table(found, names, _radii_of(found, flags),
                                   decimals=flags.decimals)
  _print(values, flags, folder,
         f'Best certified accuracy in % over {len(found)} logs, at each l2 radius by itself.')


def compare(flags):
  found = _without(_collect(flags), _empty)
  if len(found) < 2:
    raise UserError(f'{found[0].path} is a single log; two or more are allowed')
  published_logs.check_images(found)
  _warn(published_logs.differences(found))
  folder, names = _names(found, flags)
  values = listings.comparison_table(found, names, _radii_of(found, flags),
                                     decimals=flags.decimals, separate=flags.format == 'csv')
  shared = len(analysis.common_images([source.log for source in found]))
  if shared < 100:
    _warn([f'images that all logs have: {shared}; the intervals are meant for hundreds'])
  _print(values, flags, folder, f"""\
Certified accuracy in % at l2 radius r and average certified radius (ACR), on the
images that all {len(found)} logs have: {shared}; ± 95% interval over images, paired.""")


def plot(flags):
  curves.check_output(flags.output)
  found = _without(_collect(flags), _empty)
  _warn(published_logs.mixed(found))
  _warn(line for line in published_logs.differences(found)
        if not line.startswith(('sigma ', 'radii ')))
  _warn(published_logs.ending(found))
  folder, names = published_logs.names([source.path for source in found])
  curves.write(flags.output, *curves.draw([source.log for source in found], names,
                                          intervals=flags.intervals))
  print(f'{len(found)} logs{f" in {folder}" if folder else ""}: {flags.output}')


def _collect(flags):
  """The logs of the paths; what there is to say of them is told."""
  found, skipped = published_logs.collect(flags.path)
  for line in skipped:
    _tell('skipped', line)
  _warn(line for source in found for line in source.remarks)
  _warn(published_logs.stopped_early(found))
  return [_simultaneous(source) for source in found] if flags.simultaneous else found


def _simultaneous(source):
  if not len(source.log.idx):
    return source
  if source.votes is None:
    raise UserError(f'{source.path}: no vote counts in it; a certify.jsonl with counts0 and counts '
                    'is allowed with --simultaneous')
  return source._replace(log=analysis.simultaneous(source.log, source.votes, path=source.path))


def _without(found, reason):
  """The logs without those for which there is a reason to leave them out; these are listed."""
  reasons = [reason(source) for source in found]
  if all(reasons):
    raise UserError(f'no log is left: {found[0].path}: {reasons[0]}; at least one is needed')
  for name, text in zip(published_logs.names([source.path for source in found])[1], reasons):
    if text:
      _tell('left out', f'{name}: {text}')
  return [source for source, text in zip(found, reasons) if not text]


def _empty(source):
  return '' if len(source.log.idx) else 'no images'


def _no_part(source, flags):
  """Why a log is no part of the envelope; '' of one that is."""
  if source.train_split and not flags.any_split:
    return 'train split (--any-split includes it)'
  if published_logs.other_noise(source) and not flags.any_noise:
    return (f'trained with noise {source.training_noise:g}, certified with {source.sigma:g} '
            '(--any-noise includes it)')
  return _empty(source)


def _radii_of(found, flags):
  """--radii, or those that suit the logs; warns of what a log has not decided."""
  radii = flags.radii or listings.default_radii(found)
  _warn(published_logs.off_grid(found, radii))
  return radii


def _names(found, flags):
  """(folder, names): whole paths for programs, short ones for readers."""
  paths = [source.path for source in found]
  return ('', list(map(str, paths))) if flags.format == 'csv' else published_logs.names(paths)


def _print(values, flags, folder, caption):
  if flags.format == 'csv':
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
    raise argparse.ArgumentTypeError(
        f'{text!r}; numbers >= 0 with commas between them are allowed')
  return radii


def _warn(lines):
  for line in lines:
    _tell('warning', line)


def _tell(kind, line):
  print(f'{kind}: {line}', file=sys.stderr)


def main(argv=None):
  try:
    flags = make_parser().parse_args(argv)
    flags.run(flags)
  except UserError as error:
    _tell('error', error)
    sys.exit(error.exit_status)


if __name__ == '__main__':
  main()
