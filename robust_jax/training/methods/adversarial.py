"""Adversarial training."""

import functools

import jax
import jax.numpy as jnp

from robust_jax import keys, losses
from robust_jax.training import schedules
from robust_jax.types import Attack, Fraction, Index, MethodOutput, NonNegative


def adversarial(key, network, params, batch_stats, batch, memory, progress, *, attack: Attack,
                epsilon: NonNegative, epsilon_warmup_epochs: Index = 0,
                clean_share: Fraction = 0., label_smoothing: Fraction = 0.):
  """Cross-entropy of attacked images: (1 - s) L(x', y) + s L(x, y), x' = attack(x).

  The attack sees the network in evaluation mode; its result is held fixed (Danskin), so that the
  gradient is that of the loss at x'.

  Args:
    attack: the inner maximisation.
    epsilon: its radius in pixel units.
    epsilon_warmup_epochs: epochs over which the radius grows to epsilon.
    clean_share: s, the share of the clean loss; BatchNorm then sees clean and attacked images
      in one batch.
    label_smoothing: see `losses.cross_entropy`; the attack has its own objective.

  The other arguments and the result as `types.Method`; the metric 'accuracy' is that on x'.

  With one step, attack 'fgsm', it is robust optimisation (Shaham et al., algorithm 1: an update on
  the worst-case points alone), and with a clean_share of alpha the mixture of Goodfellow et al.

  Reference:
    Madry et al., Towards deep learning models resistant to adversarial attacks, 2018; Shaham et
    al., Understanding adversarial training, 2015, algorithm 1 and equation 3.
  """
  attack_key, model_key, clean_key = keys.uses(key, len(batch.images), 3)
  cross_entropy = functools.partial(losses.cross_entropy, label_smoothing=label_smoothing)
  epsilon = schedules.warm_up(epsilon, progress.epoch, epsilon_warmup_epochs)
  variables = jax.lax.stop_gradient({'params': params, 'batch_stats': batch_stats})
  attacked = jax.lax.stop_gradient(
      attack(attack_key, network.eval_logits(variables), batch.images, batch.labels,
             epsilon=epsilon).images)
  if clean_share == 0:
    logits, batch_stats = network.train_logits(params, batch_stats, attacked, model_key)
    loss = cross_entropy(logits, batch.labels)
  else:
    both = jnp.concatenate([attacked, batch.images])
    both_keys = jnp.concatenate([model_key, clean_key])
    both_logits, batch_stats = network.train_logits(params, batch_stats, both, both_keys)
    logits, clean_logits = jnp.split(both_logits, 2)
    attacked_loss = cross_entropy(logits, batch.labels)
    clean_loss = cross_entropy(clean_logits, batch.labels)
    loss = (1 - clean_share) * attacked_loss + clean_share * clean_loss
  metrics = {
      'accuracy': (jnp.argmax(logits, axis=-1) == batch.labels).astype(jnp.float32),
      'epsilon': jnp.full_like(loss, epsilon),
  }
  return MethodOutput(loss, batch_stats, metrics, memory)
