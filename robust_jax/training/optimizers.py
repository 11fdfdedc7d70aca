"""Optimisers, by the names of `config.optimizer`."""

import optax

from robust_jax.types import Fraction, NonNegative, Positive


def sgd(learning_rate, *, momentum: Fraction = 0.9, nesterov: bool = False,
        weight_decay: NonNegative = 0.):
  """SGD with momentum; weight decay is added to the gradient, as in torch.optim.SGD.

  v <- momentum v + (g + weight_decay w); w <- w - learning_rate v.

  Args:
    learning_rate: a number or an optax schedule.
    momentum: 0 for none.
    nesterov: look ahead along the momentum.
    weight_decay: L2 coefficient, on every parameter.
  """
  return optax.chain(optax.add_decayed_weights(weight_decay),
                     optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov))


def adam(learning_rate, *, b1: Fraction = 0.9, b2: Fraction = 0.999, eps: Positive = 1e-8,
         weight_decay: NonNegative = 0.):
  """Adam (Kingma & Ba 2015); weight decay is added to the gradient, as in torch.optim.Adam.

  Args:
    learning_rate: a number or an optax schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    weight_decay: L2 coefficient, on every parameter.
  """
  return optax.chain(optax.add_decayed_weights(weight_decay),
                     optax.adam(learning_rate, b1=b1, b2=b2, eps=eps))


OPTIMIZERS = {'sgd': sgd, 'adam': adam}
