"""CAT-RS: images whose noisy copies are surely right are trained at the worst noise as well."""

import jax
import jax.numpy as jnp

from robust_jax import keys, losses, smoothing
from robust_jax.attacks import threat_models
from robust_jax.attacks.pgd import iterate
from robust_jax.training.methods import passes
from robust_jax.types import AttackResult, Count, MethodOutput, NonNegative, Positive


def catrs(key, network, params, batch_stats, batch, progress, *, epsilon: NonNegative,
          sigma: Positive, num_noise: Count = 4, weight: NonNegative = 1., num_steps: Count = 4):
  """Confidence-aware training: L_low + lambda 1[k = m] L_high.

  n_1..n_m ~ N(0, sigma^2 I), drawn once; c is the share of the copies x + n_i that are classified
  as y, and k = max(1, K) with K ~ Binomial(m, c).

  - L_low: the k smallest of CE(f(x + n_i), y), their sum over m.
  - L_high: max_i KL(p || F(x + n_i')), n_i' = `worst_noise`, p the prediction of a classifier that
    was smoothed by noise before, batch.aux['targets'] (config.data.targets_file).

  BatchNorm sees x + n_i and x + n_i' in one batch, where the authors' code has a pass for each.

  Args:
    epsilon: l2 radius of n_i' around n_i in pixel units.
    sigma: standard deviation of the noise in pixel units.
    num_noise: m.
    weight: lambda.
    num_steps: of the ascent to n_i'.

  The other arguments and the result as `types.Method`; the metric 'accuracy' is c, 'kept' k / m,
  'divergence' L_high where it counts and 0 elsewhere.

  Raises:
    ValueError: the batch has no targets.

  Reference:
    Jeong, Kim & Shin, Confidence-aware training of smoothed classifiers for certified robustness,
    2023.
  """
  del progress
  if 'targets' not in batch.aux:
    raise ValueError("batch.aux has no 'targets': config.data.targets_file must be a file of them")
  attack_key, noise_key, model_key, draw_key = keys.uses(key, len(batch.images), 4)
  targets = jax.lax.stop_gradient(batch.aux['targets'])
  noise = smoothing.sample_noise(noise_key, batch.images, sigma=sigma, num_noise=num_noise)

  def attack(key, logits_fn, images, labels):
    del labels
    moved, undefined = worst_noise(key, logits_fn, images, targets, noise, epsilon=epsilon,
                                   num_steps=num_steps)
    return AttackResult(jnp.moveaxis(moved, 0, 1), None, None, undefined)

  moved, undefined = passes.attacked_images(attack_key, attack, network, params, batch_stats, batch)
  logits, batch_stats = passes.noisy_train_logits(
      model_key, network, params, batch_stats, batch.images,
      jnp.concatenate([noise, jnp.moveaxis(moved, 1, 0)]))
  logits, moved_logits = jnp.split(logits, 2)
  sure = passes.accuracy(logits, batch.labels)
  draws = jax.vmap(lambda k: jax.random.uniform(k, (num_noise,)))(draw_key)
  kept = jnp.maximum(jnp.sum(draws < sure[:, None], axis=-1), 1)
  each = jnp.sort(jax.vmap(lambda z: losses.cross_entropy(z, batch.labels))(logits), axis=0)
  low = jnp.sum(jnp.where(jnp.arange(num_noise)[:, None] < kept, each, 0), axis=0) / num_noise
  high = jnp.max(jax.vmap(lambda z: _divergence(targets, z))(moved_logits), axis=0)
  divergence = jnp.where(kept == num_noise, high, 0.)
  loss = low + weight * divergence
  metrics = {'accuracy': sure, 'kept': kept / num_noise, 'divergence': divergence,
             'epsilon': jnp.full_like(loss, epsilon), 'undefined_attacks': undefined}
  return MethodOutput(loss, batch_stats, metrics)


def worst_noise(key, logits_fn, images, targets, noise, *, epsilon, num_steps):
  """Noise of each copy by itself that ascends KL(p || F(x + n')), ||n' - n||_2 <= epsilon.

  From n' = n, num_steps times: a step of l2 length 2 epsilon / num_steps along the gradient, the
  projection onto the ball around n, and then n' is shifted and scaled to the mean and the root mean
  square of n, which leads out of the ball by a little. There is no box.

  Args:
    key: one key or [batch] keys, for directions where the gradient is zero.
    logits_fn: images -> logits.
    images: [batch, ...].
    targets: p, [batch, classes].
    noise: n, [m, batch, ...].
    epsilon: l2 radius in pixel units.
    num_steps: steps.

  Returns:
    ([m, batch, ...], [batch] bool: whether a gradient was not finite, where that copy stays).
  """
  copies, example_keys = len(noise), keys.per_example(key, len(images))
  row_keys = jax.vmap(lambda i: keys.fold_in(example_keys, i))(jnp.arange(copies)).reshape(-1)
  repeated = lambda x: jnp.tile(x, (copies,) + (1,) * (x.ndim - 1))
  rows, targets = repeated(images), repeated(targets)
  first = noise.reshape(rows.shape)
  ball = threat_models.l2(epsilon, order='ball_only')
  gradient = jax.grad(lambda n: jnp.sum(_divergence(targets, logits_fn(rows + n))))

  def step(t, carry):
    n, undefined = carry
    g = gradient(n)
    stuck = ~threat_models.all_finite(g)
    g = jnp.where(threat_models.column(stuck, n), 1, g)
    moved = ball.ascend(keys.fold_in(row_keys, t), n, g, 2 * epsilon / num_steps)
    moved = _standardised(ball.project(moved, first), first)
    return jnp.where(threat_models.column(stuck, n), n, moved), undefined | stuck

  found, undefined = iterate(num_steps, step, (first, jnp.zeros(len(rows), bool)))
  return found.reshape(noise.shape), undefined.reshape(copies, -1).any(axis=0)


def _standardised(rows, like):
  """rows, shifted to the mean of `like`, times the ratio of their root mean squares."""
  axes = tuple(range(1, rows.ndim))
  mean = lambda x: jnp.mean(x, axis=axes, keepdims=True)
  size = jnp.sqrt(mean(rows**2))
  return mean(like) + (rows - mean(rows)) * jnp.sqrt(mean(like**2)) / jnp.where(size == 0, 1, size)


def _divergence(targets, logits):
  """KL(p || softmax(logits)), [batch], with 0 log 0 = 0."""
  log_targets = jnp.log(jnp.where(targets > 0, targets, 1))
  return jnp.sum(targets * (log_targets - jax.nn.log_softmax(logits)), axis=-1)
