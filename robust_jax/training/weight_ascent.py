"""Where a step takes its gradient: at weights that raise the loss, w + v (see `train_step`).

Both v depend on the direction of the gradient alone, not on its length, so that a sum over examples
serves as well as their mean.
"""

import jax
import jax.numpy as jnp
import optax

from robust_jax.types import Positive


def awp(params, gradient, *, gamma: Positive):
  """Adversarial weight perturbation: v = gamma ||w|| g / ||g||, of each layer by itself.

  Biases and scales of normalisation, which have one axis, stay as they are.

  Args:
    params: parameters w.
    gradient: g, a pytree like them.
    gamma: the length of v over that of w.

  Returns:
    v, a pytree like them; zero where g is zero.

  Reference:
    Wu, Xia & Wang, Adversarial weight perturbation helps robust generalization, 2020, with a single
    step for v, as in the authors' code.
  """

  def layer(w, g):
    if w.ndim < 2:
      return jnp.zeros_like(w)
    return gamma * jnp.linalg.norm(w.ravel()) * _unit(g)

  return jax.tree.map(layer, params, gradient)


def sam(params, gradient, *, rho: Positive):
  """Sharpness-aware minimisation: v = rho g / ||g||, of all parameters together.

  Args:
    params: parameters.
    gradient: g, a pytree like them.
    rho: the l2 length of v.

  Returns:
    v, a pytree like them; zero where g is zero.

  Reference:
    Foret et al., Sharpness-aware minimization for efficiently improving generalization, 2021,
    equation 2 with p = 2.
  """
  del params
  return jax.tree.map(lambda g: rho * g, _unit(gradient))


def _unit(tree):
  norm = optax.tree.norm(tree)
  return jax.tree.map(lambda x: x / jnp.where(norm == 0, 1, norm), tree)
