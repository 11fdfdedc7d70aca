"""What a method remembers of each training example: its first values, and its last in a file."""

import io
from pathlib import Path

import numpy as np

from robust_jax import data
from robust_jax import workdir as workdirs
from robust_jax.stages import weights
from robust_jax.workdir import checkpoint


def initial(run):
  """{name: [num_train]} before the first step: as config.weights has it, or fresh.

  It is fresh where config.weights was trained on other examples or against another norm, in whose
  units a radius is, or config.new_head asks for other classes. One line says what was done.
  """
  fresh, path = run.memory(), run.config['weights']
  if not fresh or path is None or not Path(path).is_dir():
    return fresh
  # The step that the variables are taken from; of a folder of checkpoints alone the newest.
  step = weights.finished_step(path) or checkpoint.latest_step(path)
  leaves, about = checkpoint.read(path, step)
  saved = {name: leaves.get(f'memory/{name}') for name in fresh}
  reason = _why_fresh(run, path, saved, about['info'].get('examples'))
  names, warm_up = ', '.join(sorted(fresh)), run.config['method'].get('warmup_epochs')
  if reason:
    print(f'train: the {names} of each example begins anew: {reason}', flush=True)
    return fresh
  print(f'train: the {names} of each example is that of {path}'
        + (f', until the warm-up of {warm_up} epochs sets it anew' if warm_up else ''), flush=True)
  return saved


def _why_fresh(run, path, saved, examples):
  """Why the memory of config.weights, learned on `examples`, is not this run's; None if it is."""
  norm = _attack_norm(workdirs.stages(path).get('train', {}).get('config', {}))
  if any(leaf is None for leaf in saved.values()):
    return f'{path} has none'
  if run.config['new_head']:
    return 'config.new_head'
  if examples != run.examples:
    return (f'{path} has that of {checkpoint.describe_examples(examples)}, this run trains on '
            f'{checkpoint.describe_examples(run.examples)}')
  if norm not in (None, _attack_norm(run.config)):
    return f'{path} has that of norm {norm}, this run attacks in {_attack_norm(run.config)}'
  return None


def save_radii(run, workdir, radius):
  """Writes radii.npz: index, label, radius [num_train], and the images at both ends.

  `shown` has the indices of config.evaluation.gallery images with the smallest and as many with
  the largest radii, some of them twice where there are few; `images` are theirs.
  """
  dataset, number = run.train_data, run.evaluation.gallery
  order = np.argsort(radius, kind='stable')
  shown = np.concatenate([order[:number], order[::-1][:number]])
  file = io.BytesIO()
  np.savez_compressed(
      file, index=np.arange(len(radius)), label=np.asarray(dataset.labels), radius=radius,
      shown=shown, images=data.take(dataset, shown).images, norm=_attack_norm(run.config) or '')
  workdirs.write_bytes(Path(workdir) / 'radii.npz', file.getvalue())


def _attack_norm(config):
  return config.get('method', {}).get('attack', {}).get('norm')
