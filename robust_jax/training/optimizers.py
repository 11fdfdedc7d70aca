"""Optimisers, by the names of `config.optimizer`."""

import jax
import jax.numpy as jnp
import optax

from robust_jax.types import Fraction, NonNegative, Positive


def sgd(learning_rate, *, momentum: Fraction = 0.9, nesterov: bool = False,
        weight_decay: NonNegative = 0., decoupled: bool = False, decay_all: bool = True,
        l1: NonNegative = 0., clip_norm: Positive | None = None):
  """SGD with momentum, as torch.optim.SGD.

  g <- g min(1, clip_norm / |g|); g <- g + weight_decay w + l1 sign(w); v <- momentum v + g;
  w <- w - learning_rate v.

  Args:
    learning_rate: a number or an optax schedule.
    momentum: 0 for none.
    nesterov: look ahead along the momentum.
    weight_decay: its coefficient.
    decoupled: w <- w - learning_rate (v + weight_decay w) instead, without momentum on the decay.
    decay_all: decay every parameter, as PyTorch code does; if False, not the biases and scales of
      normalisation, which have one axis.
    l1: of l1 sum |w| over what decays, which is added to the loss that is minimised; not decoupled.
    clip_norm: largest l2 norm of the whole gradient; None for no limit.

  Reference:
    Loshchilov & Hutter, Decoupled weight decay regularization, 2019.
  """
  return _chain(optax.trace(momentum, nesterov), learning_rate, weight_decay=weight_decay,
                decoupled=decoupled, decay_all=decay_all, l1=l1, clip_norm=clip_norm)


def adam(learning_rate, *, b1: Fraction = 0.9, b2: Fraction = 0.999, eps: Positive = 1e-8,
         weight_decay: NonNegative = 0., decoupled: bool = False, decay_all: bool = True,
         l1: NonNegative = 0., clip_norm: Positive | None = None):
  """Adam, as torch.optim.Adam; with `decoupled`, AdamW.

  Args:
    learning_rate: a number or an optax schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    weight_decay, decoupled, decay_all, l1, clip_norm: as in `sgd`.

  Reference:
    Kingma & Ba, Adam: a method for stochastic optimization, 2015.
  """
  return _chain(optax.scale_by_adam(b1, b2, eps), learning_rate, weight_decay=weight_decay,
                decoupled=decoupled, decay_all=decay_all, l1=l1, clip_norm=clip_norm)


def _chain(direction, learning_rate, *, weight_decay, decoupled, decay_all, l1, clip_norm):
  mask = None if decay_all else lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
  decay = optax.add_decayed_weights(weight_decay, mask)
  clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
  inner = (direction, decay) if decoupled else (decay, direction)
  if l1:
    add = optax.stateless_with_tree_map(lambda update, w: update + l1 * jnp.sign(w))
    inner = (optax.masked(add, mask) if mask else add, *inner)
  return optax.chain(clip, *inner, optax.scale_by_learning_rate(learning_rate))


OPTIMIZERS = {'sgd': sgd, 'adam': adam}
