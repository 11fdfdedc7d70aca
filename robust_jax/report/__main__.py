"""`python -m robust_jax.report DIR ...`: the page of a run, or one that compares several.

A DIR is the folder of a run, or that of a sweep, which stands for all of its runs.
"""

import argparse
import sys

from robust_jax import report
from robust_jax.errors import UserError
from robust_jax.report import contents


def main(argv=None):
  parser = argparse.ArgumentParser(prog='python -m robust_jax.report', description=__doc__)
  parser.add_argument('workdir', nargs='+')
  parser.add_argument('--output', help='the page on several runs; compare.html, or sweep.html in '
                      'the folder of a sweep, if not given')
  flags = parser.parse_args(argv)
  single = len(flags.workdir) == 1 and not contents.is_sweep(flags.workdir[0])
  try:
    if single and flags.output:
      raise UserError(f'--output is {flags.output}; the page of a single run is its report.html, '
                      'so several workdirs are allowed with it')
    if single:
      page, summary = report.build(flags.workdir[0]), report.summary(flags.workdir[0])
    else:
      page, summary = report.compare(flags.workdir, flags.output)
  except UserError as error:
    sys.exit(print(f'error: {error}', file=sys.stderr) or 2)
  print(summary, f'report: {page}', sep='\n')


if __name__ == '__main__':
  main()
