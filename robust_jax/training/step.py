"""One training step: an ordinary function, mapped over devices by `parallel`."""

import jax
import jax.numpy as jnp
import optax

from robust_jax import keys
from robust_jax.types import Progress, TrainState


def create_state(variables, optimizer, *, memory=None):
  """The state before the first step.

  Args:
    variables: {'params', 'batch_stats'}.
    optimizer: optax transformation.
    memory: {name: [num_train]} initial per-example memory of the method; None for none.
  """
  return TrainState(
      step=jnp.zeros((), jnp.int32), params=variables['params'],
      batch_stats=variables['batch_stats'], opt_state=optimizer.init(variables['params']),
      ema=None, memory=memory or {})


def make_train_step(network, optimizer, method, *, steps_per_epoch, axis_name=None):
  """Builds the step (state, batch, key) -> (state, sums).

  The gradient is that of the mean loss over the examples of the whole batch with mask 1. Draws
  depend on the root key, the step and each example's index, never on its place.

  Args:
    network: `types.Network`; with BatchNorm over devices, made for the same axis_name.
    optimizer: optax transformation.
    method: `types.Method` with its hyper-parameters bound.
    steps_per_epoch: steps of one epoch.
    axis_name: name of the mapped axis over devices, each with a part of the batch; None without.

  Returns:
    A pure function. `sums` is {'loss' or metric: sum over examples, 'count': number of examples},
    over all devices.
  """
  total = (lambda x: x) if axis_name is None else lambda x: jax.lax.psum(x, axis_name)

  def train_step(state, batch, key):
    example_keys = keys.fold_in(keys.fold_in(key, state.step), batch.index)
    progress = Progress(state.step, state.step // steps_per_epoch)
    memory = {name: values.at[batch.index].get(mode='clip')
              for name, values in state.memory.items()}
    count = total(jnp.sum(batch.mask))

    def mean_loss(params):
      output = method(example_keys, network, params, state.batch_stats, batch, memory, progress)
      return jnp.sum(batch.mask * output.loss) / count, output

    gradient, output = jax.grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(total(gradient), state.opt_state, state.params)
    metrics = {'loss': output.loss, **output.metrics}
    sums = {name: total(jnp.sum(batch.mask * values)) for name, values in metrics.items()}
    state = TrainState(
        step=state.step + 1, params=optax.apply_updates(state.params, updates),
        batch_stats=output.batch_stats, opt_state=opt_state, ema=state.ema,
        memory=_write_memory(state.memory, output.memory, batch.index, axis_name))
    return state, {**sums, 'count': count}

  return train_step


def _write_memory(memory, values, index, axis_name):
  """Stores the examples' new values in every replica; padding's index is out of range: dropped."""
  if axis_name is not None and memory:
    index, values = jax.lax.all_gather((index, values), axis_name, tiled=True)
  return {name: leaf.at[index].set(values[name], mode='drop') for name, leaf in memory.items()}
