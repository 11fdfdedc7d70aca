"""Trains, attacks, certifies and reports: `python -m launch --config=configs/FILE.py:NAME`."""

import sys

from launch import usage
from robust_jax import terminal

if __name__ == '__main__':
  terminal.prepare()
  if {'-h', '-help', '--help'} & {*sys.argv[1:]}:
    print(usage.TEXT, end='')
  else:
    from launch import program  # With jax and all else, which takes seconds.
    program.start(sys.argv)
