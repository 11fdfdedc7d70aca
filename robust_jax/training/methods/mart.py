"""MART: adversarial training that weighs images by how surely they are misclassified."""

import math

import jax.numpy as jnp

from robust_jax import losses
from robust_jax.training import schedules
from robust_jax.training.methods import passes
from robust_jax.types import Attack, Index, MethodOutput, NonNegative

# Keeps the margin's logarithm finite, as in the authors' code.
_LEAST = 1e-4


def mart(key, network, params, batch_stats, batch, progress, *, attack: Attack,
         epsilon: NonNegative, beta: NonNegative = 5., epsilon_warmup_epochs: Index = 0):
  """Misclassification-aware training: BCE(F(x'), y) + beta (1 - F(x)_y) KL(F(x) || F(x')).

  BCE(p, y) = -log p_y - log(1.0001 - max_{k != y} p_k) also asks for a margin. x' = attack(x) is
  found in evaluation mode and held fixed; the gradient flows through all the rest, the factor
  1 - F(x)_y too, as in the authors' code. Clean and attacked images go through the network as one
  batch, where the authors' code has a pass for each.

  Args:
    attack: the inner maximisation, in the paper PGD of the cross-entropy.
    epsilon: its radius in pixel units.
    beta: the weight of the second term; 0 leaves the BCE of attacked images.
    epsilon_warmup_epochs: epochs over which the radius grows to epsilon.

  The other arguments and the result as `types.Method`; the metric 'accuracy' is that on x',
  'clean_accuracy' that on x, 'divergence' the second term without beta.

  Reference:
    Wang et al., Improving adversarial robustness requires revisiting misclassified examples, 2020.
  """
  epsilon = schedules.warm_up(epsilon, progress.epoch, epsilon_warmup_epochs)
  (logits, clean_logits), batch_stats, metrics = passes.attacked_beside_clean(
      key, attack, network, params, batch_stats, batch, epsilon=epsilon)
  divergence = losses.kl_divergence(clean_logits, logits) * jnp.exp(
      losses.log_complement(clean_logits, batch.labels))
  loss = _boosted_cross_entropy(logits, batch.labels) + beta * divergence
  return MethodOutput(loss, batch_stats, {**metrics, 'divergence': divergence})


def _boosted_cross_entropy(logits, labels):
  is_label = labels[:, None] == jnp.arange(logits.shape[-1])
  runner_up = jnp.argmax(jnp.where(is_label, -jnp.inf, logits), axis=-1)
  margin = jnp.logaddexp(losses.log_complement(logits, runner_up), math.log(_LEAST))
  return losses.cross_entropy(logits, labels) - margin
