"""One training step: a plain function, to be jitted, or mapped over devices by `parallel`."""

import jax
import jax.numpy as jnp
import optax

from robust_jax import inputs, keys
from robust_jax.types import Progress, TrainState

# The mean loss of the last 20 steps or so, of which `max_loss_jump` is a multiple.
_DECAY = 0.95
_LOSS_MEAN = optax.ema(_DECAY)


def create_state(variables, optimizer, *, ema=False, memory=None, loss_mean=False):
  """The state before the first step.

  Args:
    variables: {'params', 'batch_stats'}.
    optimizer: optax transformation.
    ema: keep a moving average of the variables; see `train_step`.
    memory: {name: [num_train]} initial per-example memory of the method; None for none.
    loss_mean: keep the mean loss of the last steps, which `train_step` needs for max_loss_jump.
  """
  return TrainState(
      step=jnp.zeros((), jnp.int32), params=variables['params'],
      batch_stats=variables['batch_stats'], opt_state=optimizer.init(variables['params']),
      ema=dict(variables) if ema else None, memory=memory or {},
      loss_mean=_LOSS_MEAN.init(jnp.zeros(())) if loss_mean else None)


def all_finite(tree):
  """Whether every entry of a pytree's arrays is finite."""
  return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def train_step(state, batch, key, *, network, optimizer, method, steps_per_epoch, axis_name=None,
               accumulation=1, ema_decay=0., skip_bad=False, max_loss_jump=0., weight_ascent=None,
               ascent_start_epoch=0):
  """One step: (state, batch, key) -> (state, sums).

  The gradient is that of the mean loss over the examples of the whole batch, weighted by their
  mask: sum_i w_i L_i / sum_i w_i. Draws depend on the root key, the step and each example's index,
  never on its place.

  Not compiled here: bind the keyword arguments and jit, or `parallel.map_train_step`:

    step = jax.jit(functools.partial(train_step, network=network, optimizer=optimizer,
                                     method=methods.standard, steps_per_epoch=23))

  Args:
    state: `types.TrainState`.
    batch: `types.Batch`, the rows of this device.
    key: the root key of training, the same one at every step.
    network: `types.Network`; with BatchNorm over devices, made for the same axis_name.
    optimizer: optax transformation.
    method: `types.Method` with its hyper-parameters bound.
    steps_per_epoch: steps of one epoch.
    axis_name: name of the mapped axis over devices, each with a part of the batch; None without.
    accumulation: parts that a device's rows go through the network in, one after the other, with
      the gradient of the whole; it must divide them. BatchNorm then normalises each part by
      itself and updates its statistics part by part.
    ema_decay: d of the average of parameters and batch statistics of a state that has one:
      e <- d_t e + (1 - d_t) w with d_t = min(d, (1 + t) / (10 + t)) after step t = 0, 1, ...,
      so that the initial parameters fade from a short training too.
    skip_bad: a step whose loss, gradient norm or batch statistics are not finite changes nothing
      but the number of steps, also that in optax's schedules; its sums are 0.
    max_loss_jump: so is one whose loss is above max_loss_jump times the mean of the last steps that
      counted, 20 or so, where that is positive and the state has it (`create_state`).
    weight_ascent: None, or one of module `weight_ascent`, (parameters w, gradient there) -> v. The
      gradient of the step, its metrics and batch statistics are then those at w + v, and the step
      goes from w; weight decay is that of w. What is attacked (`passes.fixed_classifier`) is the
      network at w in both passes, the second of which has the images that the first has found
      (`passes.attacked_images`). Costs a second pass.
    ascent_start_epoch: the first epoch, counted from 0, that has it; v is 0 before.

  Returns:
    The new state and sums over all devices: {metric: sum over examples, 'loss': their weighted
    mean loss times their number, or NaN if the gradient is not finite, 'count': their number}; with
    skip_bad also 'skipped_steps', 0 or 1. An example counts whatever its weight, unless that is 0.

  Raises:
    ValueError: a batch that is none (`inputs.batch`); the method's loss, metrics or memory are not
      one number an example; or accumulation does not divide the rows.
  """
  inputs.batch(batch)
  example_keys = keys.fold_in(keys.fold_in(key, state.step), batch.index)
  progress = Progress(state.step, state.step // steps_per_epoch,
                      state.step.astype(jnp.float32) / steps_per_epoch)
  batch = batch._replace(aux={**batch.aux, **_read_memory(state.memory, batch.index)})

  def summed_gradient(params, found=None):
    """(gradient, (output, what attacks found)); `found` is that of the pass before, if any."""

    def gradient_of(batch_stats, rows):
      example_keys, batch, found = rows

      def weighted_loss(params):
        attacked = [] if found is None else iter(found)
        seen = network if weight_ascent is None else network._replace(
            attacked_params=state.params, attacked=attacked)
        output = method(example_keys, seen, params, batch_stats, batch, progress)
        check_output(output, len(batch.labels), state.memory)
        return jnp.sum(batch.mask * output.loss), (output, attacked if found is None else None)

      return jax.grad(weighted_loss, has_aux=True)(params)

    rows = (example_keys, batch, found)
    if accumulation == 1:
      return gradient_of(state.batch_stats, rows)
    return _accumulate(gradient_of, state, rows, accumulation)

  gradient, (output, found) = summed_gradient(state.params)
  if weight_ascent is not None:
    first = gradient if axis_name is None else jax.lax.psum(gradient, axis_name)
    begun = progress.epoch >= ascent_start_epoch
    raised = jax.tree.map(lambda w, v: w + jnp.where(begun, v, 0), state.params,
                          weight_ascent(state.params, first))
    gradient, (output, _) = summed_gradient(raised, found)
    # ReLU may turn NaN into a number here too.
    gradient = jax.tree.map(lambda g: jnp.where(all_finite(raised), g, jnp.nan), gradient)
  counts = (batch.mask > 0).astype(jnp.float32)
  sums = {name: jnp.sum(counts * values) for name, values in output.metrics.items()}
  sums['loss'], sums['count'] = jnp.sum(batch.mask * output.loss), jnp.sum(counts)
  whole = gradient, sums, jnp.sum(batch.mask)
  gradient, sums, weight = whole if axis_name is None else jax.lax.psum(whole, axis_name)
  gradient = jax.tree.map(lambda x: x / weight, gradient)
  updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
  # The mean of what is minimised, as often as there are examples: it is divided by `count`.
  sums['loss'] *= sums['count'] / weight
  # On CPU ReLU and max-pools may turn NaN into a number, so the next loss might not show it.
  sums['loss'] = jnp.where(all_finite(gradient), sums['loss'], jnp.nan)
  params = optax.apply_updates(state.params, updates)
  new = TrainState(
      step=state.step + 1, params=params, batch_stats=output.batch_stats, opt_state=opt_state,
      ema=_average(state, params, output.batch_stats, ema_decay),
      memory=_write_memory(state.memory, output.memory, batch.index, axis_name),
      loss_mean=state.loss_mean)
  return _unless_bad(state, new, sums, gradient, max_loss_jump) if skip_bad else (new, sums)


def _unless_bad(state, new, sums, gradient, max_loss_jump):
  """The new state and sums; where the step is bad, the old state one step later, and zeros.

  As optax.apply_if_finite, but for the whole state, and schedules go on: they are of the step.
  """
  loss = sums['loss'] / sums['count']
  good = all_finite((loss, optax.tree.norm(gradient), new.batch_stats))
  if max_loss_jump:
    # NaN before the first step that counts: no loss is above it.
    mean = optax.tree.bias_correction(state.loss_mean.ema, _DECAY, state.loss_mean.count)
    good &= ~((mean > 0) & (loss > max_loss_jump * mean))
    new = new._replace(loss_mean=_LOSS_MEAN.update(loss, state.loss_mean)[1])
  is_schedule = lambda node: isinstance(node, optax.ScaleByScheduleState)
  kept = jax.tree.map(
      lambda after, before: after if is_schedule(after) else jnp.where(good, after, before),
      new, state, is_leaf=is_schedule)
  sums = {name: jnp.where(good, value, 0.) for name, value in sums.items()}
  return kept._replace(step=new.step), sums | {'skipped_steps': 1. - good}


def check_output(output, size, memory):
  """Raises ValueError unless a `MethodOutput` has one number for each of `size` examples."""
  if output.memory.keys() != memory.keys():
    raise ValueError(f'MethodOutput.memory must have the names {sorted(memory)} of the state, got '
                     f'{sorted(output.memory)}')
  for field, entries in (('loss', {'': output.loss}), ('metrics', output.metrics),
                         ('memory', output.memory)):
    for name, values in entries.items():
      if jnp.shape(values) != (size,):
        raise ValueError(f'MethodOutput.{field}{name and f"[{name!r}]"} must have shape ({size},), '
                         f'one number for each example, got {jnp.shape(values)}')


def _accumulate(gradient_of, state, rows, parts):
  """What gradient_of gives, summed or joined, of the rows, one part after the other."""
  size = len(rows[1].mask)
  if size % parts:
    raise ValueError(f'accumulation must divide the {size} rows of a device, got {parts}')
  rows = jax.tree.map(lambda x: x.reshape((parts, -1) + x.shape[1:]), rows)

  def step(carry, part):
    gradient, batch_stats = carry
    more, (output, found) = gradient_of(batch_stats, part)
    return (jax.tree.map(jnp.add, gradient, more), output.batch_stats), (
        output._replace(batch_stats=None), found)

  zero = jax.tree.map(jnp.zeros_like, state.params)
  (gradient, batch_stats), outputs = jax.lax.scan(step, (zero, state.batch_stats), rows)
  joined, found = jax.tree.map(lambda x: x.reshape((size,) + x.shape[2:]), outputs)
  return gradient, (joined._replace(batch_stats=batch_stats), found)


def _average(state, params, batch_stats, decay):
  if state.ema is None:
    return None
  decay = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
  return optax.incremental_update({'params': params, 'batch_stats': batch_stats}, state.ema,
                                  1 - decay)


def _read_memory(memory, index):
  """The examples' values; padding, whose index is out of range, gets any."""
  return {name: values.at[index].get(mode='clip') for name, values in memory.items()}


def _write_memory(memory, values, index, axis_name):
  """Stores the examples' new values in every replica; padding's index is out of range: dropped."""
  if axis_name is not None and values:
    index, values = jax.lax.all_gather((index, values), axis_name, tiled=True)
  return memory | {name: memory[name].at[index].set(new, mode='drop')
                   for name, new in values.items()}
