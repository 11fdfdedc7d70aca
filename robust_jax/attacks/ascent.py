"""Projected gradient ascent: the one loop that every gradient attack here runs."""

from typing import Literal

import jax
import jax.numpy as jnp

from robust_jax import backend, keys

Direction = Literal['steepest', 'gradient']


def pgd(key, objective, images, threat_model, *, step_size, num_steps, random_start=False,
        restarts=1, direction: Direction = 'steepest', start=None, success_fn=None):
  """x_{t+1} = project(x_t + step_size * direction(grad objective(x_t))).

  The last iterate is returned; of several restarts, per example, the one with the largest
  objective, among those where success_fn holds if there are any. Gradients are taken with respect
  to the images only. A plain function: wrap it in jax.jit, with the loop's length fixed, to compile
  it once for many batches.

  Args:
    key: one key or [batch] keys: random starts, and directions at a zero gradient.
    objective: images -> [batch], to ascend.
    images: [batch, ...] in [0, 1], the centres of the perturbation sets.
    threat_model: see `threat_models`; its epsilon may differ per example.
    step_size: length of a step in pixel units: scalar, [batch], or a function of the step number.
    num_steps: 0 returns the start.
    random_start: start from a random point of the set instead of from `start`.
    restarts: number of independent runs; more than one need random starts, or else they are all
      the same.
    direction: 'steepest' (see the threat model) or 'gradient', the gradient as it is.
    start: [batch, ...] first iterate; `images` if None.
    success_fn: images -> [batch] bool, whether an attack has reached its goal; None: nowhere.

  Returns:
    [batch, ...] images in the perturbation set.

  Raises:
    ValueError: an unknown direction, restarts < 1 or several without random_start, or
      num_steps < 0.

  Reference:
    Madry et al., Towards deep learning models resistant to adversarial attacks, 2018.
  """
  if direction not in ('steepest', 'gradient'):
    raise ValueError(f"direction is {direction!r}; 'steepest' or 'gradient' is allowed")
  if restarts < 1 or num_steps < 0:
    raise ValueError(f'restarts is {restarts} and num_steps {num_steps}; '
                     'at least 1 and at least 0 are allowed')
  if restarts > 1 and not random_start:
    raise ValueError(f'restarts is {restarts} and random_start False; 1 restart, or a '
                     'random_start, is allowed')
  example_keys = keys.per_example(key, len(images))
  gradient = jax.grad(lambda x: jnp.sum(objective(x)))

  def ascend(restart):
    restart_keys = keys.fold_in(example_keys, restart)
    start_keys, step_keys = keys.fold_in(restart_keys, 0), keys.fold_in(restart_keys, 1)

    def step(t, x):
      g = gradient(x)
      if direction == 'steepest':
        g = threat_model.steepest(keys.fold_in(step_keys, t), g)
      length = step_size(t) if callable(step_size) else step_size
      return threat_model.project(x + column(length, x) * g, images)

    first = images if start is None else start
    if random_start:
      first = threat_model.random(start_keys, images)
    return iterate(num_steps, step, first)

  best = ascend(0)
  if restarts == 1:
    return best

  def judge(found):
    success = jnp.zeros(len(images), bool) if success_fn is None else success_fn(found)
    return found, success, objective(found)

  def keep_better(restart, best):
    found = judge(ascend(restart))
    better = (found[1] & ~best[1]) | ((found[1] == best[1]) & (found[2] > best[2]))
    return jax.tree.map(lambda new, old: jnp.where(column(better, new), new, old), found, best)

  return jax.lax.fori_loop(1, restarts, keep_better, judge(best))[0]


def iterate(num_steps, step, first):
  """step(num_steps - 1, ... step(1, step(0, first))), as a loop or, where faster, without one.

  Args:
    num_steps: int; 0 returns `first`.
    step: (number of the step, pytree) -> pytree.
    first: pytree.
  """
  if num_steps == 1:
    return step(0, first)
  cpu = backend.layers()
  unroll = cpu is not None and cpu.unrolls(num_steps)
  return jax.lax.fori_loop(0, num_steps, step, first, unroll=unroll or None)


def fgsm(key, objective, images, threat_model):
  """One ascent step of length epsilon from the images: x + epsilon * steepest, projected.

  FGSM for linf; for l2 and l1 the steps of Shaham et al. (for l1 a single pixel changes).

  Args:
    key: one key or [batch] keys: the l2 direction at a zero gradient.
    objective: images -> [batch], to ascend.
    images: [batch, ...] in [0, 1].
    threat_model: see `threat_models`.

  Returns:
    [batch, ...] images in the perturbation set.

  Reference:
    Goodfellow et al., Explaining and harnessing adversarial examples, 2015; Shaham et al.,
    Understanding adversarial training, 2015, equation 11.
  """
  return pgd(key, objective, images, threat_model, step_size=threat_model.epsilon, num_steps=1)


def column(value, like):
  """A scalar as it is; [batch] with trailing axes, as many as `like` [batch, ...] has."""
  value = jnp.asarray(value)
  return value if value.ndim == 0 else value.reshape((-1,) + (1,) * (like.ndim - 1))
