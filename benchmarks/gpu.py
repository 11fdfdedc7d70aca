"""What a GPU alone can show, in ten minutes: stages that each leave what they have found.

  python -m benchmarks.gpu --write-data=cifar10.npz      where tensorflow-datasets has CIFAR-10
  python -m benchmarks.gpu --data=cifar10.npz            on the machine with the GPU (`make gpu`)

Needs jax, flax, optax and orbax; PyTorch too for the stages that compare with it. Each stage is a
process of its own, with a share of the time; one that fails or runs out of it leaves its log and
what it has measured, and the next begins. In the folder --out: results.jsonl, a line a stage;
STAGE.log; the results of `python -m benchmarks`; checkpoints and certificates of the trainings.

  path      trains SmoothAdv on all devices, with and without an interruption, two seeds; attacks,
            certifies, concludes again from the counts; bounds; compares with this processor
  draws     draws/s of certification: ResNet-20, -110 and -50, float32, TF32 and bfloat16
  speed     `python -m benchmarks --suite=gpu` in its short form, PyTorch eager and compiled
  gaussian  CIFAR-10, ResNet-20: Gaussian augmentation, sigma 0.5, batches of 400, 90 epochs or as
            many as fit, then certificates of test images by `sequential`, until the time ends
  smoothadv the same by SmoothAdv (m = 2, T = 2, l2 radius 1), batches of 256
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import hardware

# Of the time; what a stage leaves over goes to the later ones, by their shares.
SHARES = {'path': 3, 'draws': 3, 'speed': 4, 'gaussian': 5, 'smoothadv': 9}
DETERMINISTIC = '--xla_gpu_deterministic_ops=true'


def main():
  parser = argparse.ArgumentParser(prog='python -m benchmarks.gpu', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--data', help='.npz file from --write-data; without it no network is trained on CIFAR-10')
  add('--write-data', metavar='FILE', help='write that file and end; --data-dir as in a config')
  add('--data-dir', help=argparse.SUPPRESS)
  add('--out', type=Path, default=Path('runs/gpu'), help='(default %(default)s)')
  add('--minutes', type=float, help='for everything (default 9.5; with --quick 60)')
  add('--stages', default=','.join(SHARES), help='some of %(default)s')
  add('--quick', action='store_true', help='in miniature, on whatever device there is')
  options = parser.parse_args()
  if options.write_data:
    return write_data(options.write_data, options.data_dir)
  if options.minutes is None:
    options.minutes = 60 if options.quick else 9.5
  stages = options.stages.split(',')
  for name in stages:
    if name not in SHARES:
      parser.error(f'--stages must be of {", ".join(SHARES)}, got {name!r}')
  if not options.minutes > 0:
    parser.error(f'--minutes must be above 0, got {options.minutes:g}')
  if options.data and not Path(options.data).is_file():
    parser.error(f'--data must be a file of --write-data, got {options.data!r}')
  if not options.data and not options.quick:
    stages = [name for name in stages if name not in ('gaussian', 'smoothadv')]
    print('gaussian, smoothadv: left out, without --data')
  options.out.mkdir(parents=True, exist_ok=True)
  end = time.monotonic() + 60 * options.minutes
  failed = [name for number, name in enumerate(stages)
            if not run(name, options, share(stages[number:], end - time.monotonic()))]
  return f'failed: {", ".join(failed)}; see {options.out}/STAGE.log' if failed else None


def share(stages, seconds):
  """Seconds for the first of the stages that are left."""
  return seconds * SHARES[stages[0]] / sum(SHARES[name] for name in stages)


def run(name, options, seconds):
  """Runs a stage, for `seconds` at most; whether it ended well. Its line goes to results.jsonl."""
  log, begun = options.out / f'{name}.log', time.monotonic()
  print(f'{name}: {seconds:.0f} s at most', flush=True)
  status = 'out of time'
  (options.out / f'{name}.json').unlink(missing_ok=True)  # Of an earlier run.
  with log.open('w') as output:
    process = subprocess.Popen(command(name, options, seconds), stdout=output,
                               stderr=subprocess.STDOUT, env=environment(name))
    try:
      code = process.wait(timeout=seconds + 5)
      status = 'done' if code == 0 else f'ended with status {code}'
    except subprocess.TimeoutExpired:
      process.terminate()
      try:
        process.wait(timeout=10)
      except subprocess.TimeoutExpired:
        process.kill()
  found = {'stage': name, 'status': status, 'seconds': round(time.monotonic() - begun, 1),
           'date': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
           'quick': options.quick, 'hardware': hardware.describe('gpu'),
           'versions': hardware.versions(sys.executable), **read(options.out / f'{name}.json')}
  with (options.out / 'results.jsonl').open('a') as lines:
    lines.write(json.dumps(found) + '\n')
  print(f'{name}: {status}, {found["seconds"]:g} s; {log}', flush=True)
  return status == 'done'


def read(path):
  """What a stage has left so far; {} for nothing."""
  return json.loads(path.read_text()) if path.exists() else {}


def command(name, options, seconds):
  """The words of a stage's process."""
  python = [sys.executable, '-u', '-m']
  if name in ('draws', 'speed'):
    models, tasks, contestants = {
        'draws': ('resnet20,resnet110,resnet50', 'certify',
                  'ours,ours-float32,ours-bf16,torch,torch-bf16'),
        'speed': ('resnet20,resnet110', 'train,smoothadv,pgd10',
                  'ours,ours-bf16,torch,torch-bf16,torch-compile,torch-compile-bf16')}[name]
    words = [f'--models={models}', f'--tasks={tasks}', f'--contestants={contestants}',
             '--suite=gpu', '--noises=4', '--steps=2', '--rounds=2', '--seconds=0.5',
             f'--name={options.out.resolve()}/benchmark-{name}']
    if options.quick:
      words += ['--quick', '--device=cpu', '--models=resnet20', '--contestants=ours']
    return [*python, 'benchmarks', *words]
  return [*python, 'benchmarks.gpu_stages', name, str(options.out), str(seconds),
          options.data or '', 'quick' if options.quick else '']


def environment(name):
  """Of the stage that compares bits: sums in one order."""
  flags = os.environ.get('XLA_FLAGS', '')
  # XLA refuses flags of a backend that it has not.
  if name == 'path' and hardware.gpu():
    flags = f'{flags} {DETERMINISTIC}'.strip()
  return os.environ | {'XLA_FLAGS': flags}


def write_data(path, data_dir):
  """CIFAR-10 as one file of arrays, uint8 images and labels of both splits."""
  from robust_jax import data
  arrays = {}
  for split in ('train', 'test'):
    dataset = data.load('cifar10', split, data_dir=data_dir)
    arrays[f'{split}_images'] = np.asarray(dataset.images[:])
    arrays[f'{split}_labels'] = np.asarray(dataset.labels, np.int32)
  np.savez_compressed(path, **arrays)
  print(f'{path}: {", ".join(f"{name} {value.shape}" for name, value in arrays.items())}')


if __name__ == '__main__':
  sys.exit(main())
