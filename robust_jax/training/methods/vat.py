"""Virtual adversarial training: smoothness where the prediction changes most."""

import jax
import jax.numpy as jnp

from robust_jax import keys, losses
from robust_jax.attacks import threat_models
from robust_jax.attacks.pgd import iterate
from robust_jax.training.methods import passes
from robust_jax.types import Count, Fraction, MethodOutput, NonNegative


def vat(key, network, params, batch_stats, batch, progress, *, epsilon: NonNegative,
        weight: NonNegative = 1., num_iterations: Count = 1, label_smoothing: Fraction = 0.):
  """Cross-entropy and virtual adversarial loss: L(x, y) + lambda KL(F(x) || F(x + epsilon d)).

  d is `virtual_direction`, found in evaluation mode and held fixed, as is F(x) in the KL. There is
  no box: x + epsilon d may leave [0, 1]. BatchNorm sees x and x + epsilon d in one batch.

  Args:
    epsilon: l2 length of the perturbation in pixel units, scalar or [batch].
    weight: lambda.
    num_iterations: of the power iteration, K.
    label_smoothing: see `losses.cross_entropy`.

  The other arguments and the result as `types.Method`; the metric 'accuracy' is that on x, 'kl'
  the divergence.

  Reference:
    Miyato et al., Distributional smoothing with virtual adversarial training, 2016, section 2.
  """
  del progress
  direction_key, model_key, moved_key = keys.uses(key, len(batch.images), 3)
  direction = jax.lax.stop_gradient(virtual_direction(
      direction_key, passes.fixed_classifier(network, params, batch_stats), batch.images,
      num_iterations=num_iterations))
  moved = batch.images + threat_models.column(epsilon, batch.images) * direction
  (logits, moved_logits), batch_stats = passes.train_logits(
      network, params, batch_stats, [batch.images, moved], [model_key, moved_key])
  divergence = losses.kl_divergence(jax.lax.stop_gradient(logits), moved_logits)
  loss = losses.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
  metrics = {'accuracy': passes.accuracy(logits, batch.labels), 'kl': divergence}
  return MethodOutput(loss + weight * divergence, batch_stats, metrics)


def virtual_direction(key, logits_fn, images, *, num_iterations=1):
  """The unit l2 direction in which F(x) changes most, by the power method.

  From a random unit d, num_iterations times d <- H d / ||H d||, where H is the Hessian of
  KL(F(x) || F(x')) in x' at x' = x; H d is a forward derivative of the gradient, without finite
  differences. Where H d is zero, d is a fresh random unit.

  Args:
    key: one key or [batch] keys.
    logits_fn: images -> logits.
    images: [batch, ...].
    num_iterations: K, 1 in the paper.

  Returns:
    [batch, ...].

  Reference:
    Miyato et al. 2016, section 2.2.
  """
  example_keys = keys.per_example(key, len(images))
  sphere = threat_models.l2(1.)
  logits = jax.lax.stop_gradient(logits_fn(images))
  gradient = jax.grad(lambda x: jnp.sum(losses.kl_divergence(logits, logits_fn(x))))

  def step(iteration, direction):
    _, product = jax.jvp(gradient, (images,), (direction,))
    return sphere.steepest(keys.fold_in(example_keys, iteration), product)

  direction = sphere.steepest(keys.fold_in(example_keys, 0), jnp.zeros_like(images))
  return iterate(num_iterations, lambda t, direction: step(t + 1, direction), direction)
