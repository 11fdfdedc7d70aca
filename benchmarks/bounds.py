"""How close deterministic bounds come to the exact least margin: python -m benchmarks.bounds.

Six small networks are trained on digits for a moment. Of some test images, the least margin
z_y - z_j in an linf ball is bounded by every method, and exactly; and points of the ball are tried,
random ones and those that PGD finds against each class. Ends with status 1 where a point crosses a
bound, or where a bound is above one that it cannot be above.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from robust_jax import bounds, data, losses
from robust_jax.attacks import pgd, threat_models
from robust_jax.bounds import program, propagate

METHODS = ('ibp', 'forward', 'crown_ibp', 'crown', 'alpha', 'wong_kolter')
COLUMNS = (*METHODS, 'LP', 'exact', 'attack')
# What cannot be above what, but for the room that the programs have for rounding.
ORDER = (('ibp', 'crown_ibp'), ('crown_ibp', 'crown'), ('crown', 'alpha'), ('alpha', 'LP'),
         ('ibp', 'forward'), ('forward', 'LP'), ('wong_kolter', 'LP'), ('LP', 'exact'),
         ('exact', 'attack'))
TOLERANCE = 0.01
NUM_IMAGES, NUM_SAMPLES = 4, 2500


class Dense(nn.Module):
  """Two hidden layers."""

  activation: callable = nn.relu

  @nn.compact
  def __call__(self, x, train=False):
    x = x.reshape(len(x), -1)
    for _ in range(2):
      x = self.activation(nn.Dense(16)(x))
    return nn.Dense(10)(x)


class Strided(nn.Module):
  """Convolutions with strides and padding."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.relu(nn.Conv(4, (3, 3), (2, 2), padding=((1, 1), (1, 1)))(x))
    x = nn.relu(nn.Conv(8, (3, 3), (2, 2), padding=((1, 0), (1, 0)))(x))
    return nn.Dense(10)(x.reshape(len(x), -1))


class Residual(nn.Module):
  """BatchNorm, and a sum of two ways."""

  @nn.compact
  def __call__(self, x, train=False):
    norm = lambda: nn.BatchNorm(use_running_average=not train, momentum=0.9)
    x = nn.Conv(4, (3, 3), (2, 2))(x)
    x = nn.relu(x + nn.Conv(4, (3, 3))(nn.relu(norm()(x))))
    return nn.Dense(10)(norm()(nn.avg_pool(x, (2, 2), (2, 2))).reshape(len(x), -1))


class Pooled(nn.Module):
  """Leaky ReLUs and a max-pool."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.leaky_relu(nn.Conv(4, (3, 3), (2, 2))(x), 0.1)
    x = nn.max_pool(x, (2, 2), (2, 2))
    return nn.Dense(10)(nn.leaky_relu(nn.Dense(12)(x.reshape(len(x), -1)), 0.1))


NETWORKS = {
  'dense, ReLU': (Dense(), 0.04),
  'convolutions, strides and padding': (Strided(), 0.04),
  'BatchNorm and a residual': (Residual(), 0.03),
  'leaky ReLU and max-pool': (Pooled(), 0.03),
  'dense, tanh': (Dense(jnp.tanh), 0.04),
  'dense, hard swish': (Dense(nn.hard_swish), 0.04)}


def train(module, images, labels, num_steps=150):
  """images -> logits, after Adam on all the images at once."""
  variables = module.init(jax.random.key(0), images[:1])
  optimiser = optax.adam(0.02)

  @jax.jit
  def run(variables):
    def step(carry, _):
      params, rest, memory = carry

      def loss(params):
        logits, new = module.apply({'params': params, **rest}, images, train=True,
                                   mutable=list(rest))
        return losses.cross_entropy(logits, labels).mean(), new

      gradient, rest = jax.grad(loss, has_aux=True)(params)
      update, memory = optimiser.update(gradient, memory)
      return (optax.apply_updates(params, update), rest, memory), None

    params = variables['params']
    rest = {name: part for name, part in variables.items() if name != 'params'}
    (params, rest, _), _ = jax.lax.scan(
        step, (params, rest, optimiser.init(params)), None, num_steps)
    return {'params': params, **rest}

  return jax.tree_util.Partial(module.apply, run(variables))


def lower_bounds(logits_fn, images, labels, epsilon):
  """{method: [images, classes]}, NaN where a method does not cover the network."""
  found = {}
  for method in METHODS:
    try:
      found[method] = np.asarray(bounds.crown(logits_fn, images, epsilon, labels=labels,
                                              method=method))
    except ValueError:
      found[method] = np.full((len(images), 10), np.nan)
  rows = np.eye(10)[labels][:, None] - np.eye(10)
  for name, relaxed in (('LP', True), ('exact', False)):
    found[name] = np.full((len(images), 10), np.nan)
    try:
      for i, image in enumerate(images):
        problem = program.build(logits_fn, image, epsilon)
        found[name][i] = [program.minimum(problem, row, relaxed=relaxed)[0] for row in rows[i]]
    except ValueError:
      pass
  return found


def margins_of_points(logits_fn, images, labels, epsilon):
  """[points, images, classes], of random points and of those that PGD finds against each class."""
  draw = np.random.default_rng(0)
  moved = draw.choice([-1, 0.3, 1], size=(NUM_SAMPLES, *images.shape))
  points = np.clip(images + epsilon * moved, 0, 1).astype(np.float32)
  rows = jnp.eye(10)[labels][:, None] - jnp.eye(10)

  def against(number):
    objective = lambda x: -jnp.sum(rows[:, number] * logits_fn(x), axis=1)
    return pgd(jax.random.key(1), objective, images, threat_models.make('linf', epsilon),
               step_size=epsilon / 8, num_steps=60, restarts=4, random_start=True).images

  attacked = jax.jit(lambda: jax.lax.map(against, jnp.arange(10)))()
  box = propagate.box(images, epsilon)
  points = jnp.clip(jnp.concatenate([points, attacked, images[None]]), box.lower, box.upper)
  logits = np.asarray(jax.lax.map(jax.jit(logits_fn), points), float)
  return np.take_along_axis(logits, labels[None, :, None], axis=2) - logits


def main():
  """Prints the table; returns 1 where it is not in order."""
  begun, wrong = time.monotonic(), []
  training = data.take(data.load('digits', 'train'), range(1000))
  test = data.load('digits', 'test')
  print('| network | radius |', ' | '.join(COLUMNS), '| crossings |')
  print('|' + '---|' * (len(COLUMNS) + 3))
  for name, (module, epsilon) in NETWORKS.items():
    logits_fn = train(module, training.images, training.labels)
    batch = data.take(test, range(100))
    right = np.flatnonzero(np.argmax(logits_fn(batch.images), -1) == batch.labels)[:NUM_IMAGES]
    images, labels = np.asarray(batch.images)[right], np.asarray(batch.labels)[right]
    found = lower_bounds(logits_fn, images, labels, epsilon)
    margins = margins_of_points(logits_fn, images, labels, epsilon)
    crossings = sum(int((margins < lower).any(2).sum()) for lower in found.values())
    found['attack'] = margins.min(0)
    others = np.arange(10) != labels[:, None]
    least = {column: np.where(others, value, np.inf).min(1).mean()
             for column, value in found.items()}
    for low, high in ORDER:
      above = int((found[low] > found[high] + TOLERANCE).sum())
      if above:
        most = np.nanmax(found[low] - found[high])
        wrong.append(f'{name}: {low} is above {high} in {above} of {found[low].size} margins, by '
                     f'{most:.2g} at most')
    if crossings:
      wrong.append(f'{name}: {crossings} points cross a bound')
    shown = ['–' if np.isnan(least[column]) else f'{least[column]:.3f}' for column in COLUMNS]
    print(f'| {name} | {epsilon} |', ' | '.join(shown),
          f'| {crossings} of {margins[..., 0].size:,} |', flush=True)
  print(f'{time.monotonic() - begun:.0f} s, {time.process_time():.0f} s of a processor', *wrong,
        sep='\n')
  return bool(wrong)


if __name__ == '__main__':
  sys.exit(main())
