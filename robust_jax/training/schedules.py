"""Schedules of the learning rate and of the attack's radius."""

from typing import Literal, get_args

import jax.numpy as jnp
import optax

from robust_jax.types import Fraction, Index, NonNegative, Positive


def warm_up(value, epoch, warmup_epochs):
  """min(value, (epoch + 1) value / warmup_epochs); `value` itself for warmup_epochs 0.

  Args:
    value: final value.
    epoch: whole epochs done, 0 in the first.
    warmup_epochs: epochs of the rise, in the last of which `value` is reached.

  Reference:
    The authors' code of Salman et al. 2019.
  """
  if warmup_epochs == 0:
    return jnp.asarray(value, jnp.float32)
  return jnp.minimum(value, jnp.asarray(epoch + 1, jnp.float32) * value / warmup_epochs)


Ramp = Literal['linear', 'smooth']
# Of the smooth ramp: where its power ends, and the power.
_MIDDLE, _POWER = 0.25, 4


def ramp(passed, start, length, shape='linear'):
  """The share in [0, 1] of a radius that grows from 0: 0 until `start`, 1 from start + length on.

  With u = (passed - start) / length it is u ('linear'); or a u^4 up to u = 1/4, from there on
  straight to 1, with the a that leaves no kink ('smooth').

  Args:
    passed: epochs done with the part of the present one, see `types.Progress`.
    start: epochs before it.
    length: epochs that it takes; 0 for a step.
    shape: 'linear' or 'smooth'.

  Raises:
    ValueError: there is no such shape.

  Reference:
    The smooth one: auto_LiRPA, of the authors of Xu et al. 2020.
  """
  if shape not in get_args(Ramp):
    raise ValueError(f'ramp must be one of {", ".join(get_args(Ramp))}, got {shape!r}')
  passed = jnp.asarray(passed, jnp.float32)
  if length == 0:
    return (passed >= start).astype(jnp.float32)
  u = jnp.clip((passed - start) / length, 0, 1)
  if shape == 'linear':
    return u
  # The slope at the middle times the rest of the way is what is left of 1.
  factor = 1 / (_MIDDLE**_POWER + (1 - _MIDDLE) * _POWER * _MIDDLE**(_POWER - 1))
  slope = factor * _POWER * _MIDDLE**(_POWER - 1)
  return jnp.where(u < _MIDDLE, factor * u**_POWER, 1 - slope * (1 - u))


def constant(*, steps_per_epoch, num_epochs, learning_rate: Positive,
             warmup_epochs: NonNegative = 0.):
  """The same learning rate throughout, after a linear warm-up.

  Args:
    steps_per_epoch: optimiser steps of one epoch.
    num_epochs: epochs of the whole training (unused here).
    learning_rate: the learning rate.
    warmup_epochs: epochs over which it grows linearly from 0.

  Returns:
    An optax schedule, step -> learning rate.
  """
  del num_epochs
  return _warmed(optax.constant_schedule(learning_rate), learning_rate,
                 warmup_epochs, steps_per_epoch)


def step(*, steps_per_epoch, num_epochs, learning_rate: Positive,
         boundaries: tuple[Index, ...] = (), factor: Fraction = 0.1,
         warmup_epochs: NonNegative = 0.):
  """The learning rate is multiplied by `factor` at the start of each epoch of `boundaries`.

  Args:
    boundaries: increasing epoch numbers, counted from 0.
    factor: what each boundary multiplies with.

  The other arguments and the result as `constant`.
  """
  del num_epochs
  schedule = optax.piecewise_constant_schedule(
      learning_rate, {epoch * steps_per_epoch: factor for epoch in boundaries})
  return _warmed(schedule, learning_rate, warmup_epochs, steps_per_epoch)


def cosine(*, steps_per_epoch, num_epochs, learning_rate: Positive,
           warmup_epochs: NonNegative = 0., final_fraction: Fraction = 0.):
  """Half a cosine from the learning rate to final_fraction times it, over the whole training.

  Args:
    final_fraction: the last learning rate over the first.

  The other arguments and the result as `constant`; the warm-up's epochs are part of the whole.
  """
  warmup_steps = round(warmup_epochs * steps_per_epoch)
  decay_steps = max(round(num_epochs * steps_per_epoch) - warmup_steps, 1)
  schedule = optax.cosine_decay_schedule(learning_rate, decay_steps, final_fraction)
  return _warmed(lambda count: schedule(count - warmup_steps), learning_rate,
                 warmup_epochs, steps_per_epoch)


def linear(*, steps_per_epoch, num_epochs, learning_rate: Positive,
           warmup_epochs: NonNegative = 0., final_fraction: Fraction = 0.):
  """A straight line from the learning rate to final_fraction times it; a triangle with a warm-up.

  Args:
    final_fraction: the last learning rate over the first.

  The other arguments and the result as `cosine`.
  """
  warmup_steps = round(warmup_epochs * steps_per_epoch)
  decay_steps = max(round(num_epochs * steps_per_epoch) - warmup_steps, 1)
  schedule = optax.linear_schedule(learning_rate, final_fraction * learning_rate, decay_steps)
  return _warmed(lambda count: schedule(count - warmup_steps), learning_rate,
                 warmup_epochs, steps_per_epoch)


def _warmed(schedule, learning_rate, warmup_epochs, steps_per_epoch):
  """A linear rise to `learning_rate`, reached with step warmup_steps - 1; then `schedule`.

  Not optax.linear_schedule, whose values differ in the last bits.
  """
  warmup_steps = round(warmup_epochs * steps_per_epoch)
  if warmup_steps == 0:
    return schedule
  return lambda count: jnp.where(
      count < warmup_steps, learning_rate * (count + 1) / warmup_steps, schedule(count))


SCHEDULES = {'constant': constant, 'step': step, 'cosine': cosine, 'linear': linear}
