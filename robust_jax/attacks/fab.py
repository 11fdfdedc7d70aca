"""FAB: the closest misclassified image, by projections onto linearised decision boundaries."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_jax import inputs, keys, schema, smoothing
from robust_jax.attacks import compilation, objectives, threat_models
from robust_jax.attacks.targets import most_probable, reached
from robust_jax.attacks.threat_models import column
from robust_jax.types import Array, AttackResult, Count, Index

# The largest weight of the step from the image, against that from the iterate.
_FROM_IMAGE = 0.1
# Steps go beyond the boundary by this part of their length.
_OVERSHOOT = 1.05
# Of the perturbation of what is misclassified, the part that is kept.
_BACK = 0.9
# Random starts where there is neither a radius nor a perturbation yet: the authors' radii.
_START = {'linf': 0.3, 'l2': 1., 'l1': 5.}
_DUAL = {'linf': 'l1', 'l2': 'l2', 'l1': 'linf'}
# Of the two lengths whose ratio weighs the steps.
_SHORTEST = 1e-8
# Keeps a length finite where gradients are all but zero.
_LONGEST = 1e30


class _Search(NamedTuple):
  """One entry an example.

  Attributes:
    x: the iterate.
    best, norm: the closest misclassified image so far and its distance; inf: none.
    undefined: whether some logit or gradient was not finite.
  """

  x: Array
  best: Array
  norm: Array
  undefined: Array


@schema.checked
def fab_attack(key, logits_fn, images, labels, *, epsilon, noise=None,
               norm: threat_models.Norm = 'linf', num_steps: Count = 100, restarts: Count = 1,
               num_targets: Index = 0, targets=None, only=None):
  """Walks along the decision boundary towards the image, to the closest misclassified one.

  With D = z_t - z_y and g its gradient at x_k, the boundary towards class t is taken for the
  hyperplane H = {v: <g, v> = <g, x_k> - D}. The steps d_k of x_k and d of the image x lead, each as
  short as can be in the norm, to H within the box, or to its corner next to H. Then

      x_{k+1} = clip((1 - a) (x_k + 1.05 d_k) + a (x + 1.05 d)),  a = min(r, 0.1),
      r = ||d_k|| / (||d_k|| + ||d||)

  and where x_{k+1} is misclassified, and the closest such one so far, it is kept; the search goes
  on from x + 0.9 (x_{k+1} - x). The class t is that of the closest hyperplane, with the least
  |D| / ||g||, in the dual norm, or a given one. To reach a target t, y is the strongest other class
  at x_k instead of the label. Where no D and g are finite, d_k and d are 0.

  Args:
    key: one key or [batch] keys: random starts.
    logits_fn: images -> logits, normalisation included; see `pgd_attack`.
    images: [batch, ...] in [0, 1].
    labels: [batch] int.
    epsilon: the largest norm in pixel units, scalar or [batch]; inf: the closest found, at any
      distance.
    noise: None, or [num_noise, batch, ...] from `smoothing.sample_noise`, held fixed: z = log F
      with F the mean of the noisy copies' probabilities, and the majority of their predictions
      says what is misclassified.
    norm: 'linf', 'l2' or 'l1'.
    num_steps: of each run, two passes through the network each and a third backwards; with
      num_targets 0 one backwards for each wrong class.
    restarts: runs, the first from the image, the others from random points at half the distance
      epsilon, or of the closest found where that is less.
    num_targets: 0: any class. k: runs towards each of the k most probable wrong classes instead
      (at most all of them), with `restarts` runs each; any misclassification is a success.
    targets: [batch] int, given targets, which have to be reached; they take the place of
      num_targets.
    only: [batch] int, below restarts times targets: each image's run of this number alone; see
      `apgd_attack`.

  Returns:
    AttackResult: the closest misclassified image (with targets, classified so) where its distance
    is epsilon at most, or else the image itself. The objective is the margin there.

  Raises:
    ValueError: an argument that its annotation excludes.

  Reference:
    Croce & Hein, Minimally distorted adversarial examples with a fast adaptive boundary attack,
    2020, algorithm 1; with targets Croce & Hein, Reliable evaluation of adversarial robustness with
    an ensemble of diverse parameter-free attacks, 2020, appendix A.
  """
  victim = smoothing.victim(logits_fn, noise)
  images, labels, epsilon, targets = inputs.attacked(victim, images, labels, epsilon=epsilon,
                                                     targets=targets, any_radius=True)
  return compilation.call(_fab, logits_fn, key, victim, images, labels, epsilon, targets, only,
                          norm=norm, num_steps=num_steps, restarts=restarts,
                          num_targets=num_targets)


def _fab(key, victim, images, labels, epsilon, targets, only, *, norm, num_steps, restarts,
         num_targets):
  example_keys = keys.per_example(key, len(images))
  hits = lambda x: reached(victim.predict(x), labels, targets)
  # Classes [runs, choices, batch]: of the choices a step takes the closest.
  if targets is not None:
    classes = targets[None, None]
  elif num_targets:
    classes = most_probable(victim, images, labels, num_targets)[:, None]
  else:
    num_classes = victim.num_classes(images)
    classes = ((labels + jnp.arange(1, num_classes)[:, None]) % num_classes)[None]

  def run(number, search):
    start = images
    if restarts > 1:
      radius = jnp.minimum(epsilon, search.norm)
      radius = jnp.where(jnp.isfinite(radius), radius, _START[norm]) / 2
      random = _random(keys.fold_in(example_keys, number), images, radius, norm)
      start = jnp.where(column(number % restarts > 0, images), random, images)
    own = jnp.asarray(classes)[number // restarts, :, jnp.arange(len(images))].T
    return _walk(victim, start, search, images, labels if targets is None else None, own, hits,
                 norm=norm, num_steps=num_steps)

  nothing = jnp.zeros(len(images), bool)
  # What is misclassified already is as close as can be.
  search = _Search(images, images, jnp.where(hits(images), 0., jnp.inf), nothing)
  search = (jax.lax.fori_loop(0, len(classes) * restarts, run, search) if only is None
            else run(only, search))
  found = jnp.where(column(search.norm <= epsilon, images), search.best, images)
  logits = victim.logits(found)
  return AttackResult(found, reached(smoothing.majority(logits), labels, targets),
                      objectives.margin(logits, labels, targets), search.undefined)


def _random(key, images, radius, norm):
  """Points at the distance `radius` [batch], clipped to the box."""
  if norm == 'linf':
    draw = lambda k: jax.random.uniform(k, images.shape[1:], images.dtype, -1, 1)
  else:
    draw = lambda k: keys.standard_normal(k, images.shape[1:])
  draws = jax.vmap(draw)(key)
  return jnp.clip(images + column(radius / threat_models.norms(draws, norm), draws) * draws, 0, 1)


def _walk(victim, start, search, images, labels, classes, hits, *, norm, num_steps):
  """The _Search after num_steps from `start`, towards the closest of `classes` [choices, batch]."""
  center = images.reshape(len(images), -1)

  def step(_, search):
    x = search.x.reshape(center.shape)
    difference, normal, undefined = _closest_boundary(victim, search.x, labels, classes, norm)
    rows = jnp.stack([x, center])
    # How far each is on the other side of the hyperplane.
    excess = difference + jnp.sum(normal * (rows - x), axis=-1)
    moves = _to_hyperplane(rows, normal, excess, norm)
    lengths = jnp.maximum(jax.vmap(lambda move: threat_models.norms(move, norm))(moves), _SHORTEST)
    weight = jnp.minimum(lengths[0] / (lengths[0] + lengths[1]), _FROM_IMAGE)[:, None]
    moved = rows + _OVERSHOOT * moves
    moved = jnp.clip((1 - weight) * moved[0] + weight * moved[1], 0, 1).reshape(images.shape)
    success, size = hits(moved), threat_models.norms(moved - images, norm)
    closer = success & (size < search.norm)
    return _Search(
        x=jnp.where(column(success, moved), images + _BACK * (moved - images), moved),
        best=jnp.where(column(closer, moved), moved, search.best),
        norm=jnp.where(closer, size, search.norm), undefined=search.undefined | undefined)

  return jax.lax.fori_loop(0, num_steps, step, search._replace(x=start))


def _closest_boundary(victim, x, labels, classes, norm):
  """(z_t - z_y, its gradient, undefined) for the closest t of `classes`, one after the other.

  Args:
    victim, x, norm: as above.
    labels: y; None: for each t the strongest other class.
    classes: [choices, batch] int.

  Returns:
    [batch], [batch, pixels], both 0 where no class has finite ones, and [batch] bool, whether some
    gradient was not finite. (A logit of -inf is a class that is out of reach.)
  """
  logits, pull = jax.vjp(lambda x: smoothing.mean_logits(victim.logits(x)), x)
  of = lambda classes: jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
  value = lambda classes: jnp.take_along_axis(logits, classes[:, None], axis=-1)[:, 0]

  def look(closest, goal):
    others = jnp.where(of(goal) > 0, -jnp.inf, logits)
    own = jnp.argmax(others, axis=-1) if labels is None else labels
    difference = value(goal) - value(own)
    gradient = pull(of(goal) - of(own))[0].reshape(len(x), -1)
    undefined = jnp.isnan(difference) | ~threat_models.all_finite(gradient)
    slope = threat_models.norms(gradient, _DUAL[norm])
    distance = jnp.where(slope > 0, jnp.abs(difference) / jnp.where(slope > 0, slope, 1), jnp.inf)
    closer = ~undefined & jnp.isfinite(difference) & (distance < closest[0])
    new = (distance, difference, gradient)
    kept = jax.tree.map(lambda n, c: jnp.where(column(closer, n), n, c), new, closest[:3])
    return (*kept, closest[3] | undefined), None

  zero = jnp.zeros(len(x), logits.dtype)
  closest = (zero + jnp.inf, zero, jnp.zeros((len(x), x[0].size), x.dtype), zero > 0)
  (_, difference, gradient, undefined), _ = jax.lax.scan(look, closest, classes)
  return difference, gradient, undefined


def _to_hyperplane(rows, normal, excess, norm):
  """The shortest d within the box that takes the excess away: <normal, d> = -excess.

  Where the box has no such d, the one to its corner that leaves the least.

  Args:
    rows: [..., batch, pixels] in [0, 1].
    normal: [batch, pixels].
    excess: [..., batch].
    norm: in which d is short.
  """
  direction = -jnp.sign(excess)[..., None] * normal
  room = jnp.where(direction > 0, 1 - rows, jnp.where(direction < 0, rows, 0))
  # Squares of tiny gradients would underflow.
  slope = jnp.abs(normal)
  largest = jnp.max(slope, axis=-1)
  largest = jnp.where(largest > 0, largest, 1)
  move = {'linf': _together, 'l2': _together, 'l1': _steepest_first}[norm]
  speed = {'speed': jnp.sign(slope)} if norm == 'linf' else {}
  return jnp.sign(direction) * move(slope / largest[:, None], jnp.maximum(room, 0),
                                    jnp.abs(excess) / largest, **speed)


def _together(slope, room, need, speed=None):
  """min(l speed, room) with the least l for which <slope, .> is `need`; speed None: the slope.

  As l grows, entries meet the ends of their room, so <slope, .> is concave and piecewise linear:
  Newton's method from 0 comes to l from below, in as many steps as there are pieces at most.
  """
  speed = slope if speed is None else speed

  def improve(state):
    length, _, before = state
    free = length[..., None] * speed < room
    left = need - jnp.sum(jnp.where(free, 0, slope * room), axis=-1)
    gain = jnp.sum(jnp.where(free, slope * speed, 0), axis=-1)
    better = jnp.minimum(left / jnp.where(gain > 0, gain, 1), _LONGEST)
    length = jnp.where(gain > 0, jnp.maximum(length, better), length)
    return length, before, jnp.sum(free, axis=-1)

  # Done where no entry has met its end since the step before.
  start = jnp.zeros_like(need), jnp.full(need.shape, -2), jnp.full(need.shape, -1)
  length = jax.lax.while_loop(lambda state: jnp.any(state[1] != state[2]), improve, start)[0]
  return jnp.minimum(length[..., None] * speed, room)


def _steepest_first(slope, room, need):
  """Entries moved by all their room, the largest slopes first, until <slope, .> is `need`."""
  worth = slope * room
  # Nonnegative floats are ordered as their bits are: entries above `threshold` go all their way.
  bits = jax.lax.bitcast_convert_type(slope, jnp.int32)
  above = lambda threshold: jnp.sum(jnp.where(bits > threshold[..., None], worth, 0), axis=-1)

  def halve(_, interval):
    low, high = interval
    middle = low + (high - low) // 2
    fits = above(middle) <= need
    return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

  highest = jnp.broadcast_to(jnp.max(bits, axis=-1), need.shape)
  threshold = jax.lax.fori_loop(0, 31, halve, (jnp.full_like(highest, -1), highest))[1]
  # Those at the threshold share what is left: however they do, the sum of the moves is the same.
  at = bits == threshold[..., None]
  most = jnp.sum(jnp.where(at, worth, 0), axis=-1)
  share = jnp.clip((need - above(threshold)) / jnp.where(most > 0, most, 1), 0, 1)[..., None]
  return room * jnp.where(bits > threshold[..., None], 1, jnp.where(at, share, 0))
