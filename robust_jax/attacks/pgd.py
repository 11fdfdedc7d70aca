"""Projected gradient ascent: the loop `pgd`, and the attack `pgd_attack` that chooses its parts."""

from typing import Literal

import jax
import jax.numpy as jnp

from robust_jax import backend, inputs, keys, schema, smoothing
from robust_jax.attacks import compilation, objectives, threat_models
from robust_jax.attacks.targets import better, choose_targets, reached
from robust_jax.types import AttackResult, Count, Index, NonNegative, Positive

Direction = Literal['steepest', 'gradient']
Loss = Literal['cross_entropy', 'margin', 'kl', 'logit_gap']
Target = Literal['none', 'random', 'least_likely']
SmoothedObjective = Literal['smoothadv', 'naive', 'gradient_free']

# KL(F(x) || F(x')) has a zero gradient at x' = x: its ascent starts this far away (TRADES).
_KL_START = 0.001
# Of a gradient that is followed as it is: the squares of larger entries would overflow.
_LARGE = 1e15


def pgd(key, objective, images, threat_model, *, step_size, num_steps, random_start=False,
        restarts=1, direction: Direction = 'steepest', start=None, success_fn=None):
  """x_{t+1} = project(x_t + step_size * direction(grad objective(x_t))).

  The last iterate is the result; of several restarts, per example, the one with the largest
  objective, among the successful ones if there are any. Gradients are taken with respect to the
  images only. Where one is not finite, that example stays where it is, and is marked `undefined`.
  A plain function: wrap it in jax.jit, with the loop's length fixed, to compile it once for many
  batches.

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
    success_fn: images -> [batch] bool, whether the attack has reached its goal; None: nowhere.

  Returns:
    AttackResult, its images in the perturbation set.

  Raises:
    ValueError: an unknown direction, restarts < 1 or several without random_start, or
      num_steps < 0.

  Reference:
    Madry et al., Towards deep learning models resistant to adversarial attacks, 2018.
  """
  if direction not in ('steepest', 'gradient'):
    raise ValueError(f"direction must be 'steepest' or 'gradient', got {direction!r}")
  if num_steps < 0:
    raise ValueError(f'num_steps must be at least 0, got {num_steps}')
  if restarts < 1:
    raise ValueError(f'restarts must be at least 1, got {restarts}')
  if restarts > 1 and not random_start:
    raise ValueError(f'restarts must be 1 where random_start is False, got {restarts}')
  images = inputs.images(images)
  inputs.radius(threat_model.epsilon, len(images))
  if not callable(step_size):
    step_size = inputs.radius(step_size, len(images), name='step_size')
  example_keys = keys.per_example(key, len(images))
  gradient = jax.grad(lambda x: jnp.sum(objective(x)))

  def ascend(restart):
    restart_keys = keys.fold_in(example_keys, restart)
    start_keys, step_keys = keys.fold_in(restart_keys, 0), keys.fold_in(restart_keys, 1)

    def step(t, carry):
      x, undefined = carry
      g = gradient(x)
      stuck = ~threat_models.all_finite(g)
      # What comes of it is not taken; a gradient of zero would have a direction drawn.
      g = jnp.where(threat_models.column(stuck, x), 1, g)
      length = step_size(t) if callable(step_size) else step_size
      if direction == 'steepest':
        moved = threat_model.ascend(keys.fold_in(step_keys, t), x, g, length)
      else:
        moved = x + threat_models.column(length, x) * jnp.clip(g, -_LARGE, _LARGE)
      moved = threat_model.project(moved, images)
      return jnp.where(threat_models.column(stuck, x), x, moved), undefined | stuck

    first = images if start is None else start
    if random_start:
      first = threat_model.random(start_keys, images)
    found, undefined = iterate(num_steps, step, (first, jnp.zeros(len(images), bool)))
    success = jnp.zeros(len(images), bool) if success_fn is None else success_fn(found)
    return AttackResult(found, success, objective(found), undefined)

  best = ascend(0)
  if restarts == 1:
    return best
  return jax.lax.fori_loop(1, restarts, lambda restart, best: better(ascend(restart), best), best)


def iterate(num_steps, step, first):
  """step(num_steps - 1, ... step(1, step(0, first))), as a loop or, where faster, without one.

  Args:
    num_steps: int; 0 returns `first`.
    step: (number of the step, pytree) -> pytree.
    first: pytree.
  """
  if num_steps == 1:
    return step(0, first)
  return jax.lax.fori_loop(0, num_steps, step, first, unroll=backend.unrolls(num_steps) or None)


@schema.checked
def pgd_attack(key, logits_fn, images, labels, *, epsilon, noise=None,
               sigma: NonNegative | None = None, norm: threat_models.Norm = 'linf',
               num_steps: Index = 10, step_size: Positive | None = None,
               step_ratio: Positive = 2.5, min_step_size: NonNegative = 0.,
               random_start: bool = True, restarts: Count = 1, loss: Loss = 'cross_entropy',
               target: Target = 'none', targets=None, direction: Direction = 'steepest',
               smoothed_objective: SmoothedObjective = 'smoothadv',
               order: threat_models.Order = 'auto', l1_top_k: Count = 1):
  """PGD on a classifier, or, given noise, on the smoothed classifier (SmoothAdv-PGD).

  The annotated arguments are hyper-parameters, which a config may set; epsilon, noise and targets
  come with each call.

  Args:
    key: one key or [batch] keys.
    logits_fn: images -> logits, normalisation included. Of a `jax.tree_util.Partial`, which
      network.eval_logits gives, the attack is compiled once for all calls with the same shapes and
      hyper-parameters, whatever arrays it holds; a plain function is run as it is, which takes
      seconds a call: Partial(function, parameters) is faster.
    images: [batch, ...] in [0, 1].
    labels: [batch] int.
    epsilon: radius in pixel units, scalar or [batch].
    noise: None, or [num_noise, batch, ...] from `smoothing.sample_noise`, held fixed.
    sigma: the noise's standard deviation; needed by 'gradient_free' only.
    norm: 'linf', 'l2' or 'l1'.
    num_steps: ascent steps.
    step_size: length of a step in pixel units, scalar or [batch]. None: step_ratio * epsilon /
      num_steps.
    step_ratio: the steps' total length over epsilon: 2 in Salman et al., 2.5 in Madry et al.
    min_step_size: without step_size, no step is shorter, however small epsilon is.
    random_start: start from a random point of the perturbation set, also with loss 'kl', as Madry
      et al. do; False: from the image itself, as Salman et al. do.
    restarts: independent runs, of which more than one need a random_start; per example a successful
      result is kept, if there is one, and among equals the one with the largest objective.
    loss: 'cross_entropy'; 'margin' (Carlini-Wagner); 'kl', KL(F(x) || F(x')) from a start at
      x + 0.001 N(0, I). With a target t, 'cross_entropy' and 'margin' are minus those of t;
      'logit_gap', which needs one, is z_t - z_y (with which a third class may win). With noise, F
      is the mean of the noisy copies' probabilities, and z = log F.
    target: 'none': raise the loss of the label. 'random' or 'least_likely': lower that of such a
      class.
    targets: [batch] int, given targets; they take the place of `target`.
    direction: 'steepest', or 'gradient' for steps along the gradient as it is.
    smoothed_objective: how the noisy copies make up the cross-entropy: 'smoothadv', 'naive' or
      'gradient_free' (see `objectives`); without noise there is one copy.
    order: 'ball_then_box' (Madry et al.), 'box_then_ball' (Salman et al.), 'joint' (Croce & Hein)
      or 'ball_only'; 'auto': 'joint' for l1, else 'ball_then_box'. See `threat_models`.
    l1_top_k: the fewest gradient entries that an l1 step changes, if the box lets it.

  Returns:
    AttackResult. `success` is judged on `logits_fn`; with noise, by the majority vote of the hard
    predictions of the noisy copies.

  Raises:
    ValueError: a value not named above, or a combination that does not exist.

  Reference:
    Madry et al. 2018; Salman et al. 2019, section 2.2.
  """
  if not isinstance(target, str):
    raise ValueError("target must be 'none', 'random' or 'least_likely'; classes are given as "
                     'targets')
  victim = smoothing.victim(logits_fn, noise)
  images, labels, epsilon, targets = inputs.attacked(
      victim, images, labels, epsilon=epsilon, targets=targets,
      norm=None if order == 'ball_only' else norm)
  if step_size is not None:
    step_size = inputs.radius(step_size, len(images), name='step_size')
  return compilation.call(
      _pgd_attack, logits_fn, key, victim, images, labels, epsilon, targets, step_size, sigma=sigma,
      norm=norm, num_steps=num_steps, step_ratio=step_ratio, min_step_size=min_step_size,
      random_start=random_start, restarts=restarts, loss=loss, target=target, direction=direction,
      smoothed_objective=smoothed_objective, order=order, l1_top_k=l1_top_k)


def _pgd_attack(key, victim, images, labels, epsilon, targets, step_size, *, sigma, norm, num_steps,
                step_ratio, min_step_size, random_start, restarts, loss, target, direction,
                smoothed_objective, order, l1_top_k):
  start_keys, loop_keys, target_keys = keys.uses(key, len(images), 3)
  threat_model = threat_models.make(norm, epsilon, order=order, l1_top_k=l1_top_k)
  if targets is None and target != 'none':
    targets = choose_targets(target_keys, victim, images, labels, target=target)
  objective = _objective(victim, images, labels, targets, loss, smoothed_objective, sigma)
  start = None
  if loss == 'kl':
    start = threat_model.project(
        images + smoothing.sample_noise(start_keys, images, sigma=_KL_START, num_noise=1)[0],
        images)
  if step_size is None:
    step_size = jnp.maximum(step_ratio * epsilon / max(num_steps, 1), min_step_size)
  return pgd(loop_keys, objective, images, threat_model, num_steps=num_steps, step_size=step_size,
             random_start=random_start, restarts=restarts, direction=direction, start=start,
             success_fn=lambda x: reached(victim.predict(x), labels, targets))


def _objective(victim, images, labels, targets, loss, smoothed_objective, sigma):
  if loss == ('logit_gap' if targets is None else 'kl'):
    raise ValueError(f"loss {loss!r} goes {'without' if loss == 'kl' else 'with'} a target")
  if loss != 'cross_entropy' and smoothed_objective != 'smoothadv':
    raise ValueError(f"smoothed_objective must be 'smoothadv' with loss {loss!r}, "
                     f'got {smoothed_objective!r}')
  if loss == 'margin':
    return victim.objective(objectives.margin, labels, targets)
  if loss == 'logit_gap':
    return victim.objective(objectives.logit_gap, labels, targets)
  if loss == 'kl':
    return victim.objective(objectives.kl, jax.lax.stop_gradient(victim.logits(images)))
  if smoothed_objective == 'naive':
    return victim.objective(objectives.naive, labels, targets)
  if smoothed_objective == 'gradient_free':
    return objectives.gradient_free(victim, labels, targets, sigma=sigma)
  return victim.objective(objectives.cross_entropy, labels, targets)
