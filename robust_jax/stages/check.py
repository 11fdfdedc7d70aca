"""The check stage: whether the attacks on the run's classifier can be trusted, in check.json."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from robust_jax import data, keys, smoothing
from robust_jax.attacks import checks, threat_models
from robust_jax.stages import images, weights
from robust_jax.workdir import write_json


def check(run, workdir):
  """Examines the first config.check.num_images images of the attack stage; writes check.json."""
  logits_fn, origin, _ = weights.load(run, workdir)
  settings, norm = run.check, run.config['attack'].get('norm')
  norm = norm if norm in threat_models.NORMS else 'l2'
  epsilons = run.evaluation.epsilons
  epsilon = epsilons[len(epsilons) // 2] if settings.epsilon is None else settings.epsilon
  chosen = images.chosen(run, run.evaluation)
  batch = data.take(run.test_data, chosen[:settings.num_images])
  example_keys = keys.fold_in(run.key('attack'), jnp.asarray(batch.index))
  noise = smoothing.sample_noise(
      keys.fold_in(example_keys, 1), batch.images, sigma=run.attacked_sigma,
      num_noise=run.evaluation.num_noise) if run.attacked_sigma else None
  found = checks.examine(
      keys.fold_in(example_keys, 2), logits_fn, batch.images, batch.labels, epsilon=epsilon,
      norm=norm, noise=noise, num_steps=settings.num_steps,
      restarts=settings.restarts, num_queries=settings.num_queries)
  write_json(Path(workdir) / 'check.json', {
      'norm': norm, 'epsilon': epsilon, 'smoothed': run.attacked_sigma > 0,
      **{name: getattr(settings, name) for name in ('num_steps', 'restarts', 'num_queries')},
      **origin,
      'checks': [line._asdict() for line in found.checks],
      'curves': {name: [values.tolist(), accuracies.tolist()]
                 for name, (values, accuracies) in found.curves.items()},
      'images': [{'idx': int(index), 'label': int(label), 'robust': bool(robust),
                  **{name: float(values[i]) for name, values in found.indicators.items()}}
                 for i, (index, label, robust) in enumerate(
                     zip(batch.index, batch.labels, found.robust))]})
  for line in found.checks:
    if not line.passed:
      print(f'warning: check {line.name!r}: {line.text}: {line.found}')
  passed = sum(line.passed for line in found.checks)
  print(f'check: {norm} {epsilon:.4g}, {len(batch.index)} images; {passed} of '
        f'{len(found.checks)} checks passed, {np.mean(found.robust):.1%} robust')
