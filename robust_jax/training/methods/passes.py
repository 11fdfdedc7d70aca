"""Passes of a batch through the network, which the methods share: to attack, to train, to score."""

import jax
import jax.numpy as jnp

from robust_jax import keys, losses


def fixed_classifier(network, params, batch_stats):
  """The network in evaluation mode as a LogitsFn; no gradient flows to its parameters.

  They are network.attacked_params where it has them.
  """
  if network.attacked_params is not None:
    params = network.attacked_params
  return network.eval_logits(jax.lax.stop_gradient({'params': params, 'batch_stats': batch_stats}))


def batch_classifier(network, params, batch_stats, images, key):
  """The network with the batch statistics of these images as constants, to be bounded or attacked.

  A pass in training mode gives the statistics; the network in evaluation mode with them in place of
  the stored ones is, without dropout, the same function of these images, and one of each image by
  itself. Gradients flow through the statistics to the parameters.

  Args:
    network: `types.Network`.
    params: parameters.
    batch_stats: BatchNorm statistics.
    images: [batch, ...].
    key: [batch] keys for dropout.

  Returns:
    (logits of the images in training mode, the updated batch statistics, those of the batch, the
    LogitsFn).

  Raises:
    ValueError: statistics that are not a mean and a variance, so that their update is unknown.
  """
  def train(stats):
    logits, stats = network.train_logits(params, stats, images, key)
    return stats, logits

  for path, _ in jax.tree.leaves_with_path(batch_stats):
    if path[-1].key not in ('mean', 'var'):
      raise ValueError(f"batch_stats must be a 'mean' and 'var' of each BatchNorm to be bounded in "
                       f'training, got {jax.tree_util.keystr(path)}')
  # An update is m old + (1 - m) new: of zeros it is (1 - m) new, and its derivative in old is m.
  zeros, ones = (jax.tree.map(make, batch_stats) for make in (jnp.zeros_like, jnp.ones_like))
  new, momentum, logits = jax.jvp(train, (zeros,), (ones,), has_aux=True)
  updated = jax.tree.map(lambda m, old, new: m * old + new, momentum, batch_stats, new)
  stats = jax.tree.map(lambda m, new: new / (1 - m), momentum, new)
  return logits, updated, stats, network.eval_logits({'params': params, 'batch_stats': stats})


def attacked_images(key, attack, network, params, batch_stats, batch, **kwargs):
  """x' = attack(x), the inner maximisation.

  The attack sees the network in evaluation mode. Its result is held fixed (Danskin's theorem): the
  gradient of a loss at x' does not flow through the attack.

  Args:
    key: [batch] keys.
    attack: `types.Attack`, hyper-parameters bound.
    network: `types.Network`.
    params: parameters.
    batch_stats: BatchNorm statistics.
    batch: `types.Batch`.
    **kwargs: epsilon and, to attack the smoothed classifier, noise.

  Returns:
    (images [batch, ...], undefined [batch]: see `undefined`).
  """
  if not isinstance(network.attacked, list | None):
    return next(network.attacked)
  logits_fn = fixed_classifier(network, params, batch_stats)
  result = attack(key, logits_fn, batch.images, batch.labels, **kwargs)
  found = jax.lax.stop_gradient((result.images, undefined(result, len(batch.images))))
  if network.attacked is not None:
    network.attacked.append(found)
  return found


def undefined(result, batch):
  """`AttackResult.undefined` as a metric, 1 or 0: [batch] float32.

  The loss is finite where the attack stood still, so training goes on, and says so
  (`stages.metrics`).
  """
  return jnp.broadcast_to(jnp.asarray(result.undefined, jnp.float32), (batch,))


def train_logits(network, params, batch_stats, images, image_keys):
  """Training-mode logits of m images of each example, in one pass: BatchNorm sees all together.

  Args:
    network: `types.Network`.
    params: parameters.
    batch_stats: BatchNorm statistics.
    images: [m, batch, ...], an array or a list.
    image_keys: [m, batch] keys for dropout, an array or a list.

  Returns:
    ([m, batch, classes], the updated batch statistics).
  """
  logits, batch_stats = network.train_logits(
      params, batch_stats, jnp.concatenate(images), jnp.concatenate(image_keys))
  return logits.reshape(len(images), -1, logits.shape[-1]), batch_stats


def attacked_beside_clean(key, attack, network, params, batch_stats, batch, *, epsilon):
  """Training-mode logits of x' = attack(x) and of x, in one pass.

  Args:
    key: [batch] keys.
    epsilon: radius of the attack.

  The other arguments as `attacked_images`.

  Returns:
    ([2, batch, classes], of x' and of x; the updated batch statistics; the metrics 'accuracy' on
    x', 'clean_accuracy' on x, 'epsilon' and 'undefined_attacks', [batch] each).
  """
  attack_key, model_key, clean_key = keys.uses(key, len(batch.images), 3)
  attacked, undefined = attacked_images(attack_key, attack, network, params, batch_stats, batch,
                                        epsilon=epsilon)
  logits, batch_stats = train_logits(network, params, batch_stats, [attacked, batch.images],
                                     [model_key, clean_key])
  of_attacked, of_clean = (accuracy(each, batch.labels) for each in logits)
  return logits, batch_stats, {
      'accuracy': of_attacked, 'clean_accuracy': of_clean, 'undefined_attacks': undefined,
      'epsilon': jnp.full_like(of_attacked, epsilon)}


def noisy_train_logits(key, network, params, batch_stats, images, noise):
  """`train_logits` of the noisy copies x + n_i.

  Args:
    key: [batch] keys for dropout; copy i uses fold_in(key, i).
    images: [batch, ...].
    noise: [num_noise, batch, ...].

  The other arguments and the result as `train_logits`, with m = num_noise.
  """
  copy_keys = jax.vmap(lambda i: keys.fold_in(key, i))(jnp.arange(len(noise)))
  return train_logits(network, params, batch_stats, images + noise, copy_keys)


def mean_cross_entropy(logits, labels, *, label_smoothing):
  """The mean over m copies of `losses.cross_entropy`: logits [m, batch, classes] -> [batch]."""
  each = jax.vmap(lambda z: losses.cross_entropy(z, labels, label_smoothing=label_smoothing))
  return jnp.mean(each(logits), axis=0)


def accuracy(logits, labels):
  """1 where the class is the label, 0 elsewhere; of several copies their mean.

  Args:
    logits: [batch, classes] or [m, batch, classes].
    labels: [batch] int.

  Returns:
    [batch] float32.
  """
  correct = (losses.predicted(logits) == labels).astype(jnp.float32)
  return jnp.mean(correct.reshape(-1, len(labels)), axis=0)
