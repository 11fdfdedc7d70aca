"""AutoAttack 'standard' on one network's weights, ours and the PyTorch package's, in turns.

  python -m benchmarks.autoattack WORKDIR [--norm=linf --epsilon=0.3 --num-images=300 --rounds=1]

WORKDIR is a run of robust_jax whose network is LeNet. The package is pyautoattack (a typed release
of fra31/auto-attack), on as many threads as there are cores; --torch-python names another Python
that has torch and pyautoattack. 'unpacked' is ours with all restarts and targets of all images that
a part begins with, as the package has it, on one device: compare with --devices=1. Of each part:
robust accuracy after it, seconds with compilation, and the images that it began with a second.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('workdir')
  parser.add_argument('--norm', choices=('linf', 'l2', 'l1'), default='linf')
  parser.add_argument('--epsilon', type=float, default=0.3)
  parser.add_argument('--num-images', type=int, default=300)
  parser.add_argument('--batch-size', type=int, default=300)
  parser.add_argument('--rounds', type=int, default=1)
  parser.add_argument('--version', default='standard')
  parser.add_argument('--torch-python', default=sys.executable)
  parser.add_argument('--devices', type=int, default=0,
                      help='of ours, as the launcher has it: on CPU as many as there are cores')
  parser.add_argument('--contestants', default='ours,package',
                      help='of ours, unpacked, package')
  parser.add_argument('--side', choices=('ours', 'unpacked', 'package'), help=argparse.SUPPRESS)
  parser.add_argument('--weights', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.side:
    print(json.dumps({'ours': ours, 'unpacked': ours, 'package': package}[args.side](args)))
    return
  if args.contestants.startswith('package'):
    parser.error('--contestants: ours or unpacked comes first, as it writes the weights')
  with tempfile.TemporaryDirectory() as folder:
    words = [*sys.argv[1:], f'--weights={folder}/weights.npz']
    for number in range(args.rounds):
      sides = args.contestants.split(',')
      # The first round begins with ours, which writes the weights.
      for side in sides if number % 2 == 0 else sides[::-1]:
        python = args.torch_python if side == 'package' else sys.executable
        output = subprocess.run(
            [python, '-m', 'benchmarks.autoattack', *words, f'--side={side}'], check=True,
            stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(output.splitlines()[-1])
        begun_with = [1., *(accuracy for _, accuracy, _ in found['parts'])]
        parts = ', '.join(
            f'{name} {accuracy:.2%} ({seconds:.1f} s, {share * args.num_images / seconds:.1f}/s)'
            for share, (name, accuracy, seconds) in zip(begun_with, found['parts']))
        print(f'round {number + 1}, {side}: {parts}; {found["seconds"]:.1f} s in all', flush=True)


def ours(args):
  import jax

  from robust_jax import attacks, backend, data, workdir
  from robust_jax.devices.choose import choose_devices
  backend.tune()
  devices = choose_devices(args.devices, [args.batch_size])
  network, variables, info = workdir.load(args.workdir)
  config = json.loads((Path(args.workdir) / 'config.json').read_text())
  test = data.load(config['data']['name'], 'test', data_dir=config['data']['data_dir'])
  images = np.asarray(test.images[:args.num_images], np.float32) / 255
  labels = np.asarray(test.labels[:args.num_images])
  if not Path(args.weights).exists():
    leaves = {f'{layer}.{name}': np.asarray(value)
              for layer, values in variables['params'].items() for name, value in values.items()}
    np.savez(args.weights, images=images, labels=labels, mean=info['mean'], std=info['std'],
             **leaves)
  begun = time.monotonic()
  logits_fn, key = network.eval_logits(variables), jax.random.key(0)
  if args.side == 'unpacked':
    return {'parts': unpacked(args, key, logits_fn, images, labels),
            'seconds': time.monotonic() - begun}
  found = attacks.autoattack(key, logits_fn, images, labels, norm=args.norm, epsilon=args.epsilon,
                             version=args.version, batch_size=args.batch_size,
                             devices=devices)
  return {'parts': [(part.name, part.robust_accuracy, part.seconds) for part in found.parts],
          'seconds': time.monotonic() - begun}


def unpacked(args, key, logits_fn, images, labels):
  """[(name, robust accuracy, seconds)] of each part on what is left, with all its runs."""
  from robust_jax.attacks.autoattack import parts

  begun, predicted = time.monotonic(), np.argmax(logits_fn(images), axis=-1)
  left = np.flatnonzero(predicted == labels)
  found = [('clean', len(left) / len(images), time.monotonic() - begun)]
  for part in parts(args.version, args.norm, num_classes=10):
    begun, kept = time.monotonic(), []
    for first in range(0, len(left), args.batch_size):
      index = left[first:first + args.batch_size]
      result = part.attack(key, logits_fn, images[index], labels[index], epsilon=args.epsilon)
      kept += index[~np.asarray(result.success)].tolist()
    left = np.asarray(kept, int)
    found.append((part.name, len(left) / len(images), time.monotonic() - begun))
  return found


def package(args):
  import logging

  import torch
  from pyautoattack import AutoAttack

  from benchmarks.torch_models import LeNet, Normalise
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  arrays = dict(np.load(args.weights))
  model = torch.nn.Sequential(
      Normalise(np.atleast_1d(arrays['mean']).astype(np.float32),
                np.atleast_1d(arrays['std']).astype(np.float32)), LeNet()).eval()
  model.requires_grad_(False)
  with torch.no_grad():
    for (name, layer), ours in zip(model[1].named_children(),
                                   ('conv1', 'conv2', 'dense', 'logits')):
      kernel = arrays[f'{ours}.kernel']
      if name == 'dense':  # We flatten [row, column, channel], PyTorch [channel, row, column].
        kernel = kernel.reshape(4, 4, 50, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
      kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
      layer.weight.copy_(torch.tensor(kernel.copy()))
      layer.bias.copy_(torch.tensor(arrays[f'{ours}.bias']))
  images = torch.tensor(arrays['images']).permute(0, 3, 1, 2).contiguous()
  labels = torch.tensor(arrays['labels']).long()
  lines = []
  handler = logging.Handler()
  handler.emit = lambda record: lines.append((time.monotonic(), record.getMessage()))
  logger = logging.getLogger('auto-attack')
  logger.setLevel(logging.DEBUG)
  logger.addHandler(handler)
  begun = time.monotonic()
  attack = AutoAttack(model, norm={'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}[args.norm],
                      eps=args.epsilon, seed=0, version=args.version)
  attack.run_standard_evaluation(images, labels, batch_size=args.batch_size)
  parts, before = [], begun
  for at, line in lines:
    if line.startswith(('initial accuracy', 'robust accuracy after')):
      name = 'clean' if line.startswith('initial') else line.split('after ')[1].split(':')[0]
      parts.append((name.lower(), float(line.split(': ')[1].split('%')[0]) / 100, at - before))
      before = at
  return {'parts': parts, 'seconds': time.monotonic() - begun}


if __name__ == '__main__':
  main()
