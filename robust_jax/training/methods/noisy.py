"""The training forward pass of noisy copies, which several methods share."""

import jax
import jax.numpy as jnp

from robust_jax import keys


def train_logits(key, network, params, batch_stats, images, noise):
  """Logits of x + n_i for every draw, in training mode.

  All copies go through the network as one batch: BatchNorm sees them together.

  Args:
    key: [batch] keys, for dropout.
    network: `types.Network`.
    params: parameters.
    batch_stats: BatchNorm statistics.
    images: [batch, ...].
    noise: [num_noise, batch, ...].

  Returns:
    ([num_noise, batch, classes], the updated batch statistics).
  """
  copies = (images + noise).reshape((-1,) + images.shape[1:])
  copy_keys = jax.vmap(lambda i: keys.fold_in(key, i))(jnp.arange(len(noise))).reshape(-1)
  logits, batch_stats = network.train_logits(params, batch_stats, copies, copy_keys)
  return logits.reshape(len(noise), -1, logits.shape[-1]), batch_stats
