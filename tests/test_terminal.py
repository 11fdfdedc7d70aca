"""Programs whose output cannot be encoded, or written, or goes nowhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from robust_jax.workdir import interrupts

ROOT = Path(__file__).parents[1]
SIGPIPE = 141
TABLE = ('idx\tlabel\tpredict\tradius\tcorrect\ttime\n'
         '0\t3\t3\t0.5\t1\t0:00:01.5\n20\t1\t2\t0.25\t0\t0:00:02\n')
# What a launched run does, in little: prints, a file that is opened, a program that is started.
RUN = """
import subprocess, sys
from robust_jax import terminal
terminal.prepare()
print('99.1 ± 0.2 – ℓ₂ ε ≥ 1', 'é☃', flush=True)
with open(sys.argv[1], 'w') as file:
  subprocess.run(['echo', 'from below'], check=True)
  print('warning: below', file=sys.stderr)
  print('x' * 100_000, flush=True)
  file.write('saved')
"""
# ... and what a program does whose output is all that it is for.
LISTING = """
import sys
from robust_jax import errors, terminal
terminal.prepare(output_is_all=True)
try:
  print('line\\n' * 100_000)
  sys.stdout.flush()
except errors.UserError as error:
  print('error:', error, file=sys.stderr)
  sys.exit(2)
"""


def shell(command, **environment):
  return subprocess.run(
      ['bash', '-c', f'set -o pipefail; {command}'], cwd=ROOT, capture_output=True,
      env={**os.environ, 'PY': sys.executable, **environment})


@pytest.mark.parametrize('encoding, expected', [
    ('ascii', b'99.1 +- 0.2 - l2 eps >= 1 e?'), ('latin-1', b'99.1 \xb1 0.2 - l2 eps >= 1 \xe9?'),
    ('utf-8', '99.1 ± 0.2 – ℓ₂ ε ≥ 1 é☃'.encode())])
def test_what_cannot_be_encoded_is_written_in_other_letters(encoding, expected, tmp_path):
  done = shell(f"$PY -c '{RUN.replace(chr(39), chr(34))}' {tmp_path}/file",
               PYTHONIOENCODING=encoding)
  assert (done.returncode, done.stdout.splitlines()[0]) == (0, expected)


def test_names_that_are_no_text_are_printed(tmp_path):
  program = 'from robust_jax import terminal; terminal.prepare(); print("a\\udcff", flush=True)'
  done = shell(f"$PY -c '{program}'")
  assert (done.returncode, done.stdout) == (0, b'a?\n')


@pytest.mark.parametrize('where, warned', [
    ('>&-', False), ('>&- 2>&-', False), ('<&- >&- 2>&-', False), ('>/dev/full', True),
    ('>/dev/full 2>&1', False), ('2>/dev/full', False), ('| true', False), ('2>&1 | true', False)])
def test_a_run_goes_on_without_its_output(where, warned, tmp_path):
  file = tmp_path / 'file'
  done = shell(f"$PY -c '{RUN.replace(chr(39), chr(34))}' {file} {where}")
  assert done.returncode == 0
  assert file.read_text() == 'saved', 'messages went into a file'
  assert b'Traceback' not in done.stderr
  assert done.stderr.count(b'cannot be written (No space left on device)') == warned


@pytest.mark.parametrize('where, status, error', [
    ('| head -1', SIGPIPE, b''), ('2>&1 | head -1', SIGPIPE, b''), ('>&-', 0, b''),
    ('>/dev/full', 2, b'error: stdout cannot be written (No space left on device)\n')])
def test_a_listing_ends_with_its_output(where, status, error):
  done = shell(f"$PY -c '{LISTING.replace(chr(39), chr(34))}' {where}")
  assert (done.returncode, done.stderr) == (status, error)


def test_a_table_in_a_terminal_of_few_letters(tmp_path):
  (tmp_path / 'sigma_0.5').write_text(TABLE)
  table = f'$PY -m robust_jax.analysis table {tmp_path}/sigma_0.5'
  done = shell(table, PYTHONIOENCODING='ascii')
  assert done.returncode == 0 and b'50.0 (' in done.stdout
  done = shell(f'{table} > /dev/full')
  assert done.returncode == 2 and done.stderr.startswith(b'error: stdout') and (
      done.stderr.count(b'\n') == 1)


def test_the_launchers_list_may_go_nowhere():
  assert shell('$PY -m launch --list >/dev/full | true').returncode == 0


def test_a_signal_whose_message_nobody_reads_is_noted(monkeypatch):
  def write(number, text):
    raise BrokenPipeError
  monkeypatch.setattr(interrupts.os, 'write', write)
  with interrupts.postponed() as request:
    interrupts.signal.raise_signal(interrupts.signal.SIGTERM)
    assert request.signal == interrupts.signal.SIGTERM
