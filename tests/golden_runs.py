"""Short digits runs whose every bit is known: parameters, metrics, attacks and certificates.

  python tests/golden_runs.py [NAME ...] [--write]

Each run is launched for two epochs, and the sha256 of what it leaves is compared with that in
golden/digits_runs.json; `--write` replaces the sums there, which a change of results on purpose
needs. Bits depend on the compiler and the processor, so that another jaxlib or kind of CPU than the
file's is said, and the values of the file are compared to a tolerance instead.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import jaxlib
import numpy as np

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / 'tests' / 'golden' / 'digits_runs.json'
SHORT = ['--stages=train,attack,certify', '--devices=2', '--config.train.num_epochs=2.',
         '--config.train.log_every=7', '--config.train.eval_every_epochs=1.',
         '--config.evaluation.epsilons=(0.25,0.5)', '--config.evaluation.num_images=12',
         '--config.evaluation.n=200', '--config.certify_images.num_images=20']
N_500, N_3000 = '--config.certify.n=500', '--config.certify.n=3000'
# {name: [experiment of configs/digits.py, further words]}
RUNS = {
    'standard': ['smoothadv', '--config.method.name=standard', N_500],
    'gaussian': ['gaussian', N_500],
    'pgd': ['pgd'],
    'pgd_l1_restarts': ['pgd', '--config.attack.norm=l1', '--config.attack.restarts=2',
                        '--config.attack.random_start=True', '--config.attack.loss=margin'],
    'smoothadv': ['smoothadv', '--config.train.ema_decay=0.9', N_500],
    'smoothadv_ddn': ['smoothadv_ddn', '--config.attack.name=ddn', N_500],
    'trades': ['trades'],
    'iaat': ['iaat'],
    'macer': ['macer', N_500],
    'consistency': ['consistency', N_500],
    'vat': ['vat'],
    'tangent': ['tangent'],
    'sequential': ['gaussian', '--config.certify.name=sequential', N_3000,
                   '--config.certify.radii=(0.1,0.25,0.5)'],
    'anytime': ['gaussian', '--config.certify.name=anytime', N_3000,
                '--config.certify.noise=integer'],
}
# What is measured; and votes of attack.jsonl, of which its classes follow.
LEFT_OUT = ('images_per_second', 'steps_per_second', 'input_wait', 'memory_mib',
            'device_memory_mib', 'time', 'seconds', 'votes')


def machine():
  """What bits depend on besides the code."""
  lines = Path('/proc/cpuinfo').read_text().splitlines() if sys.platform == 'linux' else []
  kind = sorted({line for line in lines if line.startswith(('model name', 'flags'))})
  kind = '\n'.join(kind) or platform.processor()
  return {'jaxlib': jaxlib.__version__, 'cpu': hashlib.sha256(kind.encode()).hexdigest()[:16]}


def launch(name, folder):
  """Runs one of RUNS in a folder; raises CalledProcessError where it fails."""
  experiment, *words = RUNS[name]
  environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  subprocess.run([sys.executable, '-m', 'launch', f'--config=configs/digits.py:{experiment}',
                  f'--workdir={folder}', *SHORT, *words],
                 check=True, cwd=ROOT, env=environment, capture_output=True, text=True)


def results(folder):
  """{'sums': {file: sha256}, 'values': {name: number}} of a workdir."""
  folder, found = Path(folder), {'params': _parameters(folder)}
  logs = {name: _lines(folder / name) for name in ('metrics.jsonl', 'attack.jsonl',
                                                   'certify.jsonl') if (folder / name).exists()}
  found.update({name: _sum(json.dumps(lines, sort_keys=True)) for name, lines in logs.items()})
  if (folder / 'certify.tsv').exists():
    rows = (folder / 'certify.tsv').read_text().splitlines()
    found['certify.tsv'] = _sum('\n'.join(row.rpartition('\t')[0] for row in rows))
  if (folder / 'radii.npz').exists():
    with np.load(folder / 'radii.npz') as radii:
      found['radii.npz'] = _sum(json.dumps({key: radii[key].tolist() for key in sorted(radii)}))
  metrics = logs['metrics.jsonl'][-1]
  values = {key: metrics[key] for key in sorted(metrics) if isinstance(metrics[key], float)}
  return {'sums': found, 'values': values}


def differences(name, found, golden):
  """What of a run is not as in the golden file: a list of phrases."""
  if golden['machine'] == machine():
    expected = golden['runs'][name]['sums']
    return [key for key in sorted(expected | found['sums'])
            if expected.get(key) != found['sums'].get(key)]
  expected = golden['runs'][name]['values']
  return [f'{key} {found["values"].get(key)} instead of {value}' for key, value in expected.items()
          if not np.isclose(found['values'].get(key, np.nan), value, rtol=0.05, atol=0.03)]


def _parameters(folder):
  """sha256 of the trained variables. In a process of its own: this one may have other devices."""
  program = ('import hashlib, sys, jax, numpy as np\n'
             'from robust_jax import workdir\n'
             'variables, total = workdir.load(sys.argv[1])[1], hashlib.sha256()\n'
             'for path, leaf in sorted((jax.tree_util.keystr(path), np.asarray(leaf))\n'
             '    for path, leaf in jax.tree_util.tree_leaves_with_path(variables)):\n'
             '  total.update(path.encode() + leaf.tobytes())\n'
             'print(total.hexdigest())')
  done = subprocess.run([sys.executable, '-c', program, str(folder)], check=True, cwd=ROOT,
                        capture_output=True, text=True)
  return done.stdout.strip()[:16]


def _lines(path):
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  return [{key: value for key, value in line.items() if key not in LEFT_OUT} for line in lines
          if not line.keys() & {'header', 'environment'}]


def _sum(text):
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('names', nargs='*', metavar='NAME', help=f'of {", ".join(RUNS)}')
  parser.add_argument('--write', action='store_true', help=f'replace {GOLDEN.relative_to(ROOT)}')
  options = parser.parse_args()
  golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {'machine': machine(), 'runs': {}}
  failed = 0
  for name in options.names or RUNS:
    with tempfile.TemporaryDirectory() as folder:
      launch(name, Path(folder) / 'run')
      found = results(Path(folder) / 'run')
    if options.write:
      golden['machine'] = machine()
      golden['runs'][name] = found
      GOLDEN.write_text(json.dumps(golden, indent=1) + '\n')
      continue
    wrong = differences(name, found, golden)
    failed += bool(wrong)
    same = 'same bits' if golden['machine'] == machine() else 'near (another jaxlib or CPU)'
    print(f'{name}: {"differs in " + ", ".join(wrong) if wrong else same}', flush=True)
  return failed


if __name__ == '__main__':
  sys.exit(main())
