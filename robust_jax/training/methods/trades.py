"""TRADES: the clean loss, and how far the prediction moves within the perturbation set."""

import inspect

from robust_jax import losses
from robust_jax.training import schedules
from robust_jax.training.methods import passes
from robust_jax.types import Attack, Fraction, Index, MethodOutput, NonNegative


def trades(key, network, params, batch_stats, batch, progress, *, attack: Attack,
           epsilon: NonNegative, beta: NonNegative = 6., epsilon_warmup_epochs: Index = 0,
           label_smoothing: Fraction = 0.):
  """Trades accuracy off against robustness: CE(f(x), y) + beta KL(F(x) || F(x')).

  x' = attack(x), found in evaluation mode and held fixed; the gradient flows through both F(x) and
  F(x'). Clean and attacked images go through the network as one batch, so that BatchNorm
  normalises them by the same statistics (the authors' code has a pass for each).

  Args:
    attack: the inner maximisation, PGD of loss 'kl' (a config has no other: images found by
      another objective give a smaller second term). It begins at x + 0.001 N(0, I), with
      `random_start` at a random point of the set instead.
    epsilon: its radius in pixel units.
    beta: the weight of the second term; 0 is training on clean images.
    epsilon_warmup_epochs: epochs over which the radius grows to epsilon.
    label_smoothing: of the clean loss; see `losses.cross_entropy`.

  The other arguments and the result as `types.Method`; the metric 'accuracy' is that on x',
  'clean_accuracy' that on x, 'divergence' the second term without beta.

  Raises:
    ValueError: the attack has a loss, and it is not 'kl'.

  Reference:
    Zhang et al., Theoretically principled trade-off between robustness and accuracy, 2019,
    equation 5 and algorithm 1.
  """
  loss = inspect.signature(attack).parameters.get('loss')
  if loss is not None and loss.default != 'kl':
    raise ValueError(f"attack must have the loss 'kl', got {loss.default!r}")
  epsilon = schedules.warm_up(epsilon, progress.epoch, epsilon_warmup_epochs)
  (logits, clean_logits), batch_stats, metrics = passes.attacked_beside_clean(
      key, attack, network, params, batch_stats, batch, epsilon=epsilon)
  divergence = losses.kl_divergence(clean_logits, logits)
  clean_loss = losses.cross_entropy(clean_logits, batch.labels, label_smoothing=label_smoothing)
  loss = clean_loss + beta * divergence
  return MethodOutput(loss, batch_stats, {**metrics, 'divergence': divergence})
