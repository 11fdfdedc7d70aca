"""Kills a digits run at random moments and compares the end with an undisturbed run's.

  python tests/kill_and_resume.py --kills=20 --seed=0

Two kills in three are SIGKILL, one is SIGTERM, which has to end the run with status 75 (once it
has begun; before, and in the last moment, as any process). Each time
the same command is given again. Where a run comes to its end before it is killed, it is compared
and another one is begun. What may differ: times, speeds, memory, and the environments that a
resume notes.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from robust_jax.workdir import checkpoint, monitoring  # noqa: E402

WORDS = ['--config.train.num_epochs=16.', '--config.train.checkpoint_every=40',
         '--config.train.ema_decay=0.99', '--config.train.keep_best=True',
         '--config.data.validation=0.1',
         '--config.train.log_every=7', '--config.train.eval_every_epochs=3',
         '--config.evaluation.num_images=40', '--config.evaluation.batch_size=10',
         '--config.evaluation.n=500', '--config.certify_images.num_images=200',
         '--config.certify_images.images_per_call=10', '--config.certify.n=5000']
_MEASURED = (*monitoring.MEASURED, 'time')


def command(folder, *words):
  """The command line of a run in `folder`."""
  return [sys.executable, '-m', 'launch', f'--workdir={folder}', *words]


def results(folder):
  """{name: what has to be the same} of a workdir; arrays and lists of dicts."""
  found = {}
  for name in ('metrics.jsonl', 'attack.jsonl', 'certify.jsonl'):
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    found[name] = [{k: v for k, v in line.items() if k not in _MEASURED}
                   for line in lines if not line.keys() & {'header', 'environment'}]
  found['certify.tsv'] = [line.split('\t')[:-1]
                          for line in (folder / 'certify.tsv').read_text().splitlines()]
  with np.load(folder / 'gallery.npz') as gallery:
    found['gallery.npz'] = dict(gallery)
  for path in sorted((folder / 'checkpoints').glob('step_*')):
    found[path.name] = checkpoint.read(folder, int(path.name[5:]))
  return found


def differences(one, two):
  """The names in which two `results` differ."""
  equal = lambda a, b: json.dumps(a, default=lambda x: x.tolist()) == json.dumps(
      b, default=lambda x: x.tolist())
  return [name for name in sorted(one.keys() | two.keys())
          if name not in one or name not in two or not equal(one[name], two[name])]


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--folder', default=None, help='where to run; a new temporary one if unset')
  arguments = parser.parse_args()
  rng = random.Random(arguments.seed)
  folder = Path(arguments.folder or tempfile.mkdtemp())
  environment = {**os.environ, 'TFDS_DATA_DIR': str(folder / 'tfds')}

  def start(name, **kwargs):
    return subprocess.Popen(command(folder / name, *WORDS), cwd=ROOT, env=environment,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **kwargs)

  begun = time.monotonic()
  if start('undisturbed').wait():
    sys.exit('the undisturbed run failed')
  duration = time.monotonic() - begun
  expected = results(folder / 'undisturbed')
  print(f'undisturbed: {duration:.0f} s, {len(expected["certify.jsonl"])} certificates')

  kills, runs, wrong = 0, 1, []
  while kills < arguments.kills:
    name = f'disturbed{runs}'
    process = start(name)
    number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    # One kill in four while the process starts; the others soon after it has got further.
    before, begun = progress(folder / name), time.monotonic()
    waits = rng.random() > 0.25
    while waits and process.poll() is None and progress(folder / name) == before:
      time.sleep(0.05)
    try:
      if process.wait(rng.uniform(0, 4)) != 0:
        sys.exit(f'{name} failed')
    except subprocess.TimeoutExpired:
      process.send_signal(number)
      delay = time.monotonic() - begun
      status = process.wait()
      statuses = (-signal.SIGKILL,) if number == signal.SIGKILL else (75, -signal.SIGTERM, 0)
      if status not in statuses:
        sys.exit(f'{name} ended with {status} after {number.name}')
      kills += 1
      print(f'{kills:2} {number.name:7} after {delay:4.1f} s, status {status:3}: '
            f'{progress(folder / name)}', flush=True)
      if kills < arguments.kills:
        continue
      if start(name).wait():
        sys.exit(f'{name} failed')
    different = differences(expected, results(folder / name))
    print(f'{name}: ended; ' + ('; '.join(different) + ' differ' if different else 'identical'))
    wrong += different
    runs += 1
  sys.exit(bool(wrong))


def progress(folder):
  """How far a workdir is, in words."""
  steps = [int(path.name[5:]) for path in (folder / 'checkpoints').glob('step_*')
           if path.name[5:].isdigit()]
  count = lambda name: ((folder / name).read_text().count('"idx"')
                        if (folder / name).exists() else 0)
  return (f'checkpoint {max(steps, default=None)}, {count("attack.jsonl")} attacked, '
          f'{count("certify.jsonl")} certified')


if __name__ == '__main__':
  main()
