"""APGD: projected gradient ascent that finds its step size itself (AutoAttack's white-box part)."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from robust_jax import inputs, keys, schema, smoothing
from robust_jax.attacks import compilation, objectives, threat_models
from robust_jax.attacks.targets import most_probable, reached
from robust_jax.attacks.threat_models import column
from robust_jax.types import Array, AttackResult, Count, Index

Loss = Literal['cross_entropy', 'dlr']

# A step size is halved where no more than this part of a window's steps has raised the objective.
_RISING = 0.75
# Weight of the new step against the momentum.
_NEW = 0.75
# l1: entries that the first steps move; where the best perturbation has fewer than this part of
# the last one's entries, the search starts afresh; how fast, and how far, steps shrink.
_SPARSITY = 0.2
_SPARSER = 0.95
_SHRINK = 1.5
_SHORTEST = 0.1


class _State(NamedTuple):
  """One entry an example, but for the counters.

  Attributes:
    x, gradient: the iterate, and the gradient of the objective there.
    previous: the iterate before.
    last: the objective that was evaluated last.
    best, best_gradient, best_objective: of the iterate with the largest objective so far.
    found, success: the last iterate that is misclassified, and whether there is one.
    step_size: eta.
    rises: evaluations of this window with a larger objective than the one before.
    checked, halved: best_objective at the last check, and whether eta was halved there.
    still, entries: in l1, how many entries a step does not move, and the number of entries of the
      best perturbation at the last check.
    counter, window: the steps since the last check, and those between two.
    undefined: whether some gradient was not finite.
  """

  x: Array
  gradient: Array
  previous: Array
  last: Array
  best: Array
  best_gradient: Array
  best_objective: Array
  found: Array
  success: Array
  step_size: Array
  rises: Array
  checked: Array
  halved: Array
  still: Array
  entries: Array
  counter: Array
  window: Array
  undefined: Array


@schema.checked
def apgd_attack(key, logits_fn, images, labels, *, epsilon, noise=None,
                norm: threat_models.Norm = 'linf', num_steps: Count = 100, restarts: Count = 1,
                loss: Loss = 'cross_entropy', num_targets: Index = 0, targets=None,
                larger_first: bool = False, only=None):
  """PGD with momentum, whose steps are halved where they do not help, from the best point so far.

  With P the projection, d the steepest direction and eta = 2 epsilon at first,

      z = P(x_k + eta d(x_k)),  x_{k+1} = P(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_{k-1}))

  and x_1 = z. At steps 22, 41, 57, 70, 80, 87, 93 and 99 of 100 (shares of `num_steps` otherwise)
  eta is halved, and the search goes on from the best point, where at most three quarters of the
  steps since the last such check have raised the objective, or where eta was not halved there and
  the best objective is as it was.

  In l1, x_{k+1} = P(x_k + eta s) with s the signs of the k d largest of d gradient entries, divided
  by their number, eta = epsilon and k = 0.2 at first. Every 25th part of the steps k becomes the
  number of entries of the best perturbation over 1.5 d; where that number has fallen below 0.95 of
  what it was, eta is epsilon again and the search goes on from the best point; else eta is divided
  by 1.5, to epsilon / 10 at least.

  Args:
    key: one key or [batch] keys: random starts.
    logits_fn: images -> logits, normalisation included; see `pgd_attack`.
    images: [batch, ...] in [0, 1].
    labels: [batch] int.
    epsilon: radius in pixel units, scalar or [batch].
    noise: None, or [num_noise, batch, ...] from `smoothing.sample_noise`, held fixed.
    norm: 'linf', 'l2' or 'l1'.
    num_steps: of each run.
    restarts: runs from other random starts, each on what is not misclassified yet.
    loss: 'cross_entropy', or 'dlr' (`losses.dlr`; with targets `losses.targeted_dlr`).
    num_targets: 0: any other class. k: runs towards each of the k most probable wrong classes
      instead (at most all of them), with `restarts` runs each; any misclassification is a success.
    targets: [batch] int, given targets, which have to be reached; they take the place of
      num_targets.
    larger_first: three tenths of the steps within 3 epsilon, as many within 2 epsilon, each from
      the best point of the last projected, and the others within epsilon (Croce & Hein 2021).
    only: [batch] int, below restarts times targets: of these runs, in the order of the targets,
      each image's one of this number alone. So a suite shares batches among runs of several images.

  Returns:
    AttackResult: where an iterate is misclassified the last such one, or else the one of the
    largest objective. Images that are misclassified as they are stay so. The objective is the loss
    of the label (with targets, minus that of the target).

  Raises:
    ValueError: an argument that its annotation excludes.

  Reference:
    Croce & Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks, 2020, algorithm 1; Croce & Hein, Mind the box: l1-APGD for sparse
    adversarial attacks on image classifiers, 2021, algorithm 1.
  """
  victim = smoothing.victim(logits_fn, noise)
  images, labels, epsilon, targets = inputs.attacked(
      victim, images, labels, epsilon=epsilon, targets=targets, norm=norm)
  return compilation.call(_apgd, logits_fn, key, victim, images, labels, epsilon, targets, only,
                          norm=norm, num_steps=num_steps, restarts=restarts, loss=loss,
                          num_targets=num_targets, larger_first=larger_first)


def _apgd(key, victim, images, labels, epsilon, targets, only, *, norm, num_steps, restarts, loss,
          num_targets, larger_first):
  example_keys = keys.per_example(key, len(images))
  epsilon = jnp.broadcast_to(epsilon, (len(images),))
  stages = _stages(num_steps) if larger_first else [(1, num_steps)]
  loss_fn = {'cross_entropy': objectives.cross_entropy, 'dlr': objectives.dlr}[loss]
  hits = lambda logits: reached(smoothing.majority(logits), labels, targets)
  if targets is not None:
    goals = targets[None]
  else:
    goals = most_probable(victim, images, labels, num_targets) if num_targets else [None]

  def evaluate(goal, x):
    """(objective, gradient, success) from one pass; a gradient of NaN where it is not finite."""

    def summed(x):
      logits = victim.logits(x)
      objective = loss_fn(logits, labels, goal)
      return jnp.sum(objective), (objective, hits(logits))

    (_, (objective, success)), gradient = jax.value_and_grad(summed, has_aux=True)(x)
    return objective, gradient, success

  def run(number, best):
    goal = None
    if goals[0] is not None:
      goal = jnp.asarray(goals)[number // restarts, jnp.arange(len(images))]
    x = _random(keys.fold_in(example_keys, number), images, threat_models.make(
        norm, stages[0][0] * epsilon))
    undefined = best.undefined
    for stage, (factor, steps) in enumerate(stages):
      threat_model = threat_models.make(norm, factor * epsilon)
      x = threat_model.project(x, images)
      state = _ascend(functools.partial(evaluate, goal), x, images, threat_model, steps,
                      at_random=stage == 0 and not larger_first)
      x, undefined = state.best, undefined | state.undefined
    new = best._replace(
        images=jnp.where(column(state.success, x), state.found, state.best), success=state.success,
        objective=state.best_objective)
    better = ~best.success & (new.success | (new.objective > best.objective))
    kept = jax.tree.map(lambda n, b: jnp.where(column(better, n), n, b), new, best)
    return kept._replace(undefined=undefined)

  nothing = jnp.zeros(len(images), bool)
  best = AttackResult(images, hits(victim.logits(images)), jnp.full(len(images), -jnp.inf), nothing)
  best = (jax.lax.fori_loop(0, restarts * len(goals), run, best) if only is None
          else run(only, best))
  return best._replace(objective=loss_fn(victim.logits(best.images), labels, targets))


def _stages(num_steps):
  """[(factor of epsilon, steps), ...] of `larger_first`."""
  first, second = int(0.3 * num_steps), int(0.3 * num_steps)
  return [(3, first), (2, second), (1, num_steps - first - second)]


def _random(key, images, threat_model):
  """The authors' starts: linf and l2 on the sphere, l1 a normal draw, projected."""
  if threat_model.norm == 'linf':
    draw = lambda k: jax.random.uniform(k, images.shape[1:], images.dtype, -1, 1)
  else:
    draw = lambda k: keys.standard_normal(k, images.shape[1:])
  draws = jax.vmap(draw)(key)
  if threat_model.norm != 'l1':
    draws *= column(threat_model.epsilon / threat_models.norms(draws, threat_model.norm), draws)
    return jnp.clip(images + draws, 0, 1)
  return threat_model.project(images + draws, images)


def _ascend(evaluate, x, images, threat_model, num_steps, *, at_random):
  """The _State after num_steps from x."""
  sparse = threat_model.norm == 'l1'
  size = images[0].size
  largest = threat_model.epsilon * (1 if sparse else 2)
  objective, gradient, success = evaluate(x)
  entries = jnp.full(len(x), size) if at_random else _entries(x - images)
  still = jnp.full(len(x), int((1 - _SPARSITY) * size)) if at_random else _still(entries, size)
  window = max(int(0.04 * num_steps if sparse else 0.22 * num_steps), 1)
  state = _State(
      x=x, gradient=gradient, previous=x, last=jnp.zeros_like(objective), best=x,
      best_gradient=gradient, best_objective=objective, found=x, success=success,
      step_size=largest, rises=jnp.zeros(len(x), jnp.int32), checked=objective,
      halved=jnp.ones(len(x), bool), still=still, entries=entries, counter=jnp.int32(0),
      window=jnp.int32(window), undefined=jnp.zeros(len(x), bool))
  check = functools.partial(_check_sparse, images, largest) if sparse else functools.partial(
      _check, num_steps)

  def step(i, state):
    stuck = ~threat_models.all_finite(state.gradient)
    gradient = jnp.where(column(stuck, x), 0, state.gradient)
    if sparse:
      new = state.x + column(state.step_size, x) * _sparse_signs(gradient, state.still)
      new = threat_model.project(new, images)
    else:
      new = threat_model.project(state.x + column(state.step_size, x) * _direction(
          threat_model, gradient), images)
      kept = jnp.where(i > 0, _NEW, 1.)
      new = threat_model.project(state.x + kept * (new - state.x) + (1 - kept) * (
          state.x - state.previous), images)
    new = jnp.where(column(stuck, x), state.x, new)
    objective, gradient, success = evaluate(new)
    higher = (objective > state.best_objective) | jnp.isnan(state.best_objective)
    state = state._replace(
        x=new, gradient=gradient, previous=state.x, last=objective,
        best=jnp.where(column(higher, x), new, state.best),
        best_gradient=jnp.where(column(higher, x), gradient, state.best_gradient),
        best_objective=jnp.where(higher, objective, state.best_objective),
        found=jnp.where(column(success, x), new, state.found), success=state.success | success,
        rises=state.rises + (objective > state.last).astype(jnp.int32), counter=state.counter + 1,
        undefined=state.undefined | stuck)
    return jax.lax.cond(state.counter == state.window, check, lambda state: state, state)

  return jax.lax.fori_loop(0, num_steps, step, state)


def _direction(threat_model, gradient):
  """The steepest direction; 0 where the gradient is."""
  if threat_model.norm == 'linf':
    return jnp.sign(gradient)
  norm = threat_models.norms(gradient, 'l2')
  return gradient / column(jnp.where(norm > 0, norm, 1), gradient)


def _still(entries, size):
  """How many of `size` entries a step does not move: all but two thirds of `entries`."""
  return jnp.minimum((3 * size - 2 * entries) // 3, size - 1)


def _sparse_signs(gradient, still):
  """The signs of the gradient, but for its `still` [batch] smallest entries, over their number."""
  size = jnp.abs(gradient).reshape(len(gradient), -1)
  least = jnp.take_along_axis(jnp.sort(size, axis=-1), still[:, None], axis=-1)[:, 0]
  signs = jnp.where(jnp.abs(gradient) >= column(least, gradient), jnp.sign(gradient), 0)
  return signs / column(jnp.maximum(_entries(signs), 1).astype(signs.dtype), signs)


def _entries(perturbation):
  """The number of entries of each example that are not zero, [batch]."""
  return jnp.sum(jnp.abs(perturbation) > 1e-5, axis=tuple(range(1, perturbation.ndim)))


def _check(num_steps, state):
  """Halves eta and goes back to the best point where the last window was of little use."""
  halve = (state.rises.astype(jnp.float32) <= _RISING * state.window.astype(jnp.float32)) | (
      ~state.halved & (state.checked >= state.best_objective))
  state = _back_to_best(state, halve)
  window = jnp.maximum(state.window - max(int(0.03 * num_steps), 1), max(int(0.06 * num_steps), 1))
  return state._replace(
      step_size=jnp.where(halve, state.step_size / 2, state.step_size), halved=halve,
      checked=state.best_objective, rises=jnp.zeros_like(state.rises), counter=jnp.int32(0),
      window=window)


def _check_sparse(images, largest, state):
  """Adapts the number of entries that an l1 step moves, and eta."""
  entries = _entries(state.best - images)
  sparser = entries.astype(jnp.float32) < _SPARSER * jnp.asarray(state.entries, jnp.float32)
  state = _back_to_best(state, sparser)
  shorter = jnp.maximum(state.step_size / _SHRINK, _SHORTEST * largest)
  return state._replace(
      step_size=jnp.where(sparser, largest, shorter), entries=entries,
      still=_still(entries, images[0].size), counter=jnp.int32(0))


def _back_to_best(state, where):
  to = column(where, state.x)
  return state._replace(x=jnp.where(to, state.best, state.x),
                        gradient=jnp.where(to, state.best_gradient, state.gradient))
