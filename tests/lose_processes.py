"""Loses processes of a digits run at random moments and compares the end with an undisturbed run's.

  python tests/lose_processes.py --rounds=20 --seed=0

Four devices, as 1 x 4, 2 x 2 or 4 x 1 processes, by chance anew in each round: SIGTERM to one or
to all, SIGKILL or SIGSTOP to one. The others have to end within 30 seconds with status 75; then the
same command is given again. What comes to its end is compared, bit for bit, but not what is
measured.
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kill_and_resume import ROOT, WORDS, command, differences, progress, results

WITHIN = 30


def start(folder, total):
  """The processes of a run, whose standard errors are in files beside its folder."""
  with socket.socket() as bound:
    bound.bind(('127.0.0.1', 0))
    port = bound.getsockname()[1]
  started = []
  for number in range(total):
    with open(f'{folder}.{number}.txt', 'w') as file:
      started.append(subprocess.Popen(
          command(folder, *WORDS, '--config.evaluation.batch_size=12', f'--devices={4 // total}',
                  f'--coordinator=127.0.0.1:{port}',
                  f'--num_processes={total}', f'--process_id={number}'),
          cwd=ROOT, env={**os.environ, 'TFDS_DATA_DIR': f'{folder}.tfds'},
          stdout=subprocess.DEVNULL, stderr=file))
  return started


def lose(rng, started):
  """Sends a signal; returns (its name, those that got it, seconds until the others had ended)."""
  fault = rng.choice(['SIGTERM', 'SIGTERM to all', 'SIGKILL', 'SIGSTOP'])
  hit = started if fault.endswith('all') else [rng.choice(started)]
  for process in hit:
    process.send_signal(getattr(signal, fault.split()[0]))
  begun = time.monotonic()
  for process in started:
    if process not in hit or fault.startswith('SIGTERM'):
      process.wait(timeout=2 * WITHIN)
  seconds = time.monotonic() - begun
  for process in hit:
    process.kill()
    process.wait()
  return fault, hit, seconds


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--rounds', type=int, default=20)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--folder', default=None, help='where to run; a new temporary one if unset')
  arguments = parser.parse_args()
  rng, folder = random.Random(arguments.seed), Path(arguments.folder or tempfile.mkdtemp())
  begun = time.monotonic()
  if any(process.wait() for process in start(folder / 'undisturbed', 2)):
    sys.exit('the undisturbed run failed')
  expected = results(folder / 'undisturbed')
  print(f'undisturbed, 2 x 2: {time.monotonic() - begun:.0f} s', flush=True)

  done, runs, wrong = 0, 1, []
  while done < arguments.rounds:
    place = folder / f'disturbed{runs}'
    total = rng.choice([1, 2, 2, 4])
    started, before = start(place, total), progress(place)
    while all(each.poll() is None for each in started) and progress(place) == before:
      time.sleep(0.05)
    time.sleep(rng.uniform(0, 4))
    if all(each.poll() is None for each in started):
      fault, hit, seconds = lose(rng, started)
      statuses = [each.returncode for each in started]
      # All may have ended well at that moment.
      fair = [status in (75, 0) for status, each in zip(statuses, started)
              if each not in hit or fault.startswith('SIGTERM')]
      if not all(fair) or seconds > WITHIN:
        sys.exit(f'{place}: {statuses} {seconds:.1f} s after {fault}')
      done += 1
      which = 'all' if len(hit) > 1 else started.index(hit[0])
      print(f'{done:2} {total} x {4 // total} {fault:14} of {which}: the others ended after '
            f'{seconds:4.1f} s, {statuses}: {progress(place)}', flush=True)
      if done < arguments.rounds:
        continue
      if any(process.wait() for process in start(place, 1)):
        sys.exit(f'{place} failed')
    elif any(each.wait() for each in started):
      sys.exit(f'{place} failed: {[each.returncode for each in started]}')
    found = results(place)
    # SIGTERM saves a step more; the last one is compared always.
    last = max(expected, key=lambda name: name.startswith('step_') and int(name[5:]))
    different = [name for name in differences(expected, found)
                 if name == last or not name.startswith('step_') or name in {*expected} & {*found}]
    print(f'{place.name}: ended; ' + (f'{"; ".join(different)} differ' if different else
                                      'identical'), flush=True)
    wrong += different
    runs += 1
  sys.exit(bool(wrong))


if __name__ == '__main__':
  main()
