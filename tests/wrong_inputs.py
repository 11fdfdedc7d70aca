"""What wrong inputs are answered with: a table of command, one-line answer and exit status.

  python tests/wrong_inputs.py

Every command has to end with status 2 and one line on stderr, without a traceback.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from robust_jax import workdir  # noqa: E402

WRONG = [
    '--config=configs/smoothadv_mnst.py',
    '--config=configs/gaussian_mnist.py',
    '--config=configs/mnist.py:gausian',
    '--config=configs/smoothadv_digits.py:macer',
    '--config.sigmaa=1.0',
    '--config.train.batchsize=128',
    '--config.train.num_epochs=-1.0',
    '--config.train.num_epochs=ten',
    '--config.train.batch_size=0.5',
    '--config.train.ema_decay=1.0',
    '--config.train.accumulation=3',
    '--config.optimizer.clip_norm=0.0',
    '--config.seed=-1',
    '--config.sigma=nan',
    '--config.method.name=smoothav',
    '--config.attack.name=pdg',
    '--config.attack.norm=l3',
    '--config.model.name=resnet21',
    '--config.data.name=cifar11',
    '--config.data.name=mnist --config.data.data_dir={tmp}/nowhere',
    '--config.data.name=folder --config.data.data_dir={tmp}/nowhere',
    '--config.data.name={tmp}/nothing.npz',
    '--config.data.name={tmp}/channels_first.npz',
    '--config.data.name=arrays',
    '--config.data.augment=flip',
    '--config.data.mean=(2.0,)',
    '--config.evaluation.epsilons=()',
    '--config.certify.alpha=1.0',
    '--config.certify.n0=0',
    '--config.checkpoint=best',
    '--config.weights={tmp}/nothing.pth',
    '--config.weights=README.md',
    '--config=configs/external.py',
    '--config=configs/external.py --config.model.function=numpy:logits',
    '--config=configs/external.py --config.model.function=nothing_here:logits',
    '--config=configs/external.py --config.model.function=jax.numpy:sqrt',
    '--stages=tran',
    '--redo=everything',
    '--stages=certify',
    '--devices=-1',
    '--devices=3',
    '--frobnicate',
    'certify',
    '--workdir={tmp}/file',
    '--workdir={tmp}/foreign',
    '--workdir={tmp}/used',
    '--workdir={tmp}/run --config.epsilon=0.9',
    '--workdir={tmp}/damaged --stages=certify',
    '--sweep --config=configs/mnist.py:pgd',
    '--sweep --config.seed=3',
]


def prepare(folder, environment):
  """Makes the files and workdirs that the commands name."""
  (folder / 'file').touch()
  np.savez(folder / 'channels_first.npz', train_images=np.zeros((9, 3, 8, 8)),
           train_labels=np.arange(9) % 3, test_images=np.zeros((9, 3, 8, 8)),
           test_labels=np.arange(9) % 3)
  (folder / 'foreign').mkdir()
  (folder / 'foreign' / 'thesis.tex').touch()
  for name in ('run', 'damaged'):
    subprocess.run([sys.executable, '-m', 'launch', f'--workdir={folder / name}', '--stages=train',
                    '--config.train.num_steps=2'], cwd=ROOT, env=environment, check=True,
                   capture_output=True)
  for file in (folder / 'damaged' / 'checkpoints').glob('step_*/state/d/*'):
    file.write_bytes(file.read_bytes()[:-1])


def main():
  with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
    folder = Path(name)
    environment = {**os.environ, 'TFDS_DATA_DIR': str(folder / 'tfds')}
    prepare(folder, environment)
    stack.enter_context(workdir.locked(folder / 'used'))
    failed = 0
    print('| command | answer | status |\n|---|---|---|')
    for number, words in enumerate(WRONG):
      words = words.format(tmp=folder).split()
      if not any(word.startswith('--workdir') for word in words):
        words.append(f'--workdir={folder}/new{number}')
      result = subprocess.run([sys.executable, '-m', 'launch', *words], cwd=ROOT, env=environment,
                              capture_output=True, text=True)
      good = result.returncode == 2 and result.stderr.count('\n') == 1
      failed += not good
      shown = ' '.join(word for word in words if f'{folder}/new' not in word)
      print(f'| `{shown}` | {result.stderr.strip()} | {result.returncode} |'
            .replace(str(folder), 'TMP'), flush=True)
    print(f'{len(WRONG) - failed} of {len(WRONG)} end with one line and status 2')
  sys.exit(bool(failed))


if __name__ == '__main__':
  main()
