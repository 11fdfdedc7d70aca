"""ARoW: TRADES, its second term weighed by how wrong the attacked image is."""

import jax.numpy as jnp

from robust_jax import losses
from robust_jax.training import schedules
from robust_jax.training.methods import passes
from robust_jax.types import Attack, Fraction, Index, MethodOutput, NonNegative


def arow(key, network, params, batch_stats, batch, progress, *, attack: Attack,
         epsilon: NonNegative, weight: NonNegative = 7., epsilon_warmup_epochs: Index = 0,
         label_smoothing: Fraction = 0.2):
  """Anti-robust weighting: CE(f(x), y) + lambda (1 - F(x')_y) KL(F(x) || F(x')).

  x' = attack(x) is found in evaluation mode and held fixed; the gradient flows through all the
  rest, the factor too, as in the authors' code. Clean and attacked images go through the network
  as one batch, where the authors' code has a pass for each.

  Args:
    attack: the inner maximisation; the authors' is PGD of loss 'kl' and, on CIFAR-100, of the
      cross-entropy.
    epsilon: its radius in pixel units.
    weight: lambda, as in the authors' code; twice that of their paper.
    epsilon_warmup_epochs: epochs over which the radius grows to epsilon.
    label_smoothing: of the clean loss; see `losses.cross_entropy`.

  The other arguments and the result as `types.Method`; the metric 'accuracy' is that on x',
  'clean_accuracy' that on x, 'divergence' the second term without lambda.

  Reference:
    Yang, Kong & Kim, Improving adversarial robustness by putting more regularizations on less
    robust samples, 2023.
  """
  epsilon = schedules.warm_up(epsilon, progress.epoch, epsilon_warmup_epochs)
  (logits, clean_logits), batch_stats, metrics = passes.attacked_beside_clean(
      key, attack, network, params, batch_stats, batch, epsilon=epsilon)
  divergence = losses.kl_divergence(clean_logits, logits) * jnp.exp(
      losses.log_complement(logits, batch.labels))
  loss = losses.cross_entropy(
      clean_logits, batch.labels, label_smoothing=label_smoothing) + weight * divergence
  return MethodOutput(loss, batch_stats, {**metrics, 'divergence': divergence})
