"""Catastrophic overfitting: what was trained with one step of attack withstands one step alone."""

import jax
import jax.numpy as jnp

from robust_jax import attacks, keys

_NUM_STEPS = 10


def attacked_accuracy(state, batch, key, *, network, norm, epsilon, axis_name=None):
  """Accuracy on a training batch under FGSM and under PGD with ten steps, in evaluation mode.

  A network that overfits catastrophically is right at nearly all that a single step finds, and at
  nearly nothing that several find. Elsewhere the two accuracies are close.

  Args:
    state: `types.TrainState`, whose parameters are attacked, not their average.
    batch: `types.Batch`, the rows of this device.
    key: the root key of training.
    network: `types.Network`.
    norm: 'linf', 'l2' or 'l1'.
    epsilon: the radius in pixel units.
    axis_name: as in `train_step`, in whose place `parallel.map_train_step` takes it.

  Returns:
    None, where a train step has its new state, and {'fgsm_accuracy', 'pgd_accuracy', 'count'},
    sums over the examples of all devices.

  Reference:
    Wong, Rice & Kolter, Fast is better than free: revisiting adversarial training, 2020,
    who compare the accuracy under PGD with that of an epoch before.
  """
  logits_fn = network.eval_logits({'params': state.params, 'batch_stats': state.batch_stats})
  example_keys = keys.fold_in(keys.fold_in(key, state.step), batch.index)
  fgsm = attacks.fgsm(example_keys, logits_fn, batch.images, batch.labels, epsilon=epsilon,
                      norm=norm)
  pgd = attacks.pgd_attack(example_keys, logits_fn, batch.images, batch.labels, epsilon=epsilon,
                           norm=norm, num_steps=_NUM_STEPS)
  counts = (batch.mask > 0).astype(jnp.float32)
  sums = {'fgsm_accuracy': jnp.sum(counts * ~fgsm.success),
          'pgd_accuracy': jnp.sum(counts * ~pgd.success), 'count': jnp.sum(counts)}
  return None, sums if axis_name is None else jax.lax.psum(sums, axis_name)
