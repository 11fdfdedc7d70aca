"""`python -m robust_jax.analysis LOG ...`: certified accuracy of logs, side by side.

A LOG is a certify.jsonl, or a table with the columns `idx label predict radius correct time`.
"""

import argparse
import sys

import numpy as np

from robust_jax import analysis
from robust_jax.certification import log
from robust_jax.errors import UserError

FORMATS = {'text': analysis.to_text, 'csv': analysis.to_csv, 'markdown': analysis.to_markdown,
           'latex': analysis.to_latex}


def compare(names, logs, radii):
  """Certified accuracy in per cent at each radius, ACR and abstention, one row a log."""
  curves = [analysis.certified_accuracy(one, radii) for one in logs]
  rows = [[name, str(len(one.idx)), *_percent(curve),
           f'{analysis.average_certified_radius(one):.3f}',
           f'{100 * analysis.abstention_rate(one):.1f}']
          for name, one, curve in zip(names, logs, curves)]
  if len(logs) > 1:
    best = analysis.envelope(logs, radii)
    rows.append(['best at each radius', None, *_percent(best), None, None])
  return analysis.Table(
      ['log', 'images', *(f'r={radius:g}' for radius in radii), 'ACR', 'abstains'], rows)


def _percent(fractions):
  return [f'{value:.1f}' for value in 100 * np.asarray(fractions)]


def main(argv=None):
  parser = argparse.ArgumentParser(prog='python -m robust_jax.analysis', description=__doc__)
  parser.add_argument('log', nargs='+')
  parser.add_argument('--radii', type=float, nargs='+', default=[0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0])
  parser.add_argument('--format', choices=FORMATS, default='text')
  flags = parser.parse_args(argv)
  try:
    table = compare(flags.log, [log.read(path) for path in flags.log], flags.radii)
  except UserError as error:
    sys.exit(print(f'error: {error}', file=sys.stderr) or 2)
  print(FORMATS[flags.format](table), end='')


if __name__ == '__main__':
  main()
