"""Gradient attacks at the seam `types.Attack`: they choose the objective and run the loop.

Their annotated keyword arguments are hyper-parameters, which a config may set; epsilon, noise and
targets come with each call.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from robust_jax import keys, losses, smoothing
from robust_jax.attacks import ascent, threat_models
from robust_jax.types import AttackResult, Count, Index, NonNegative, Positive

Norm = Literal['linf', 'l2', 'l1']
Loss = Literal['cross_entropy', 'margin', 'kl']
Target = Literal['none', 'random', 'least_likely']
SmoothedObjective = Literal['smoothadv', 'naive', 'gradient_free']

# KL(F(x) || F(x')) has a zero gradient at x' = x: its ascent starts this far away (TRADES).
_KL_START = 0.001


def pgd_attack(key, logits_fn, images, labels, *, epsilon, noise=None,
               sigma: NonNegative | None = None, norm: Norm = 'linf', num_steps: Index = 10,
               step_size: Positive | None = None, step_ratio: Positive = 2.5,
               min_step_size: NonNegative = 0., random_start: bool = False, restarts: Count = 1,
               loss: Loss = 'cross_entropy', target: Target = 'none', targets=None,
               direction: ascent.Direction = 'steepest',
               smoothed_objective: SmoothedObjective = 'smoothadv',
               order: threat_models.Order = 'ball_then_box', l1_top_k: Count = 1):
  """PGD on a classifier, or, given noise, on the smoothed classifier (SmoothAdv-PGD).

  Args:
    key: one key or [batch] keys.
    logits_fn: images -> logits, normalisation included.
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
    random_start: start from a random point of the perturbation set, also with loss 'kl'.
    restarts: independent runs, of which more than one need a random_start; per example a successful
      result is kept, if there is one, and among equals the one with the largest objective.
    loss: 'cross_entropy'; 'margin' (Carlini-Wagner); 'kl', KL(F(x) || F(x')) from a start at
      x + 0.001 N(0, I). With noise: 'cross_entropy' only, shaped by `smoothed_objective`.
    target: 'none': raise the loss of the label. 'random' or 'least_likely': raise z_t - z_y of
      that target (with noise: lower the smoothed loss of the target).
    targets: [batch] int, given targets; they take the place of `target`.
    direction: 'steepest', or 'gradient' for steps along the gradient as it is.
    smoothed_objective: 'smoothadv', 'naive' or 'gradient_free' (see `smoothing`).
    order: 'ball_then_box' (Madry et al.), 'box_then_ball' (Salman et al.) or 'ball_only'.
    l1_top_k: gradient entries that an l1 step changes.

  Returns:
    AttackResult. `success` is judged on `logits_fn`; with noise, by the majority vote of the hard
    predictions of the noisy copies.

  Raises:
    ValueError: a combination named above as not available.

  Reference:
    Madry et al. 2018; Salman et al. 2019, section 2.2.
  """
  example_keys = keys.per_example(key, len(images))
  start_keys, loop_keys, target_keys = (keys.fold_in(example_keys, use) for use in range(3))
  if targets is None and target != 'none':
    targets = _choose_targets(target_keys, logits_fn, images, labels, noise, target)
  if noise is None:
    objective = _objective(logits_fn, images, labels, targets, loss)
  else:
    objective = _smoothed_objective(logits_fn, labels, targets, noise, sigma, loss,
                                    smoothed_objective)
  epsilon = jnp.asarray(epsilon, images.dtype)
  threat_model = _threat_model(norm, epsilon, order, l1_top_k)
  start = None
  if loss == 'kl':
    start = threat_model.project(
        images + smoothing.sample_noise(start_keys, images, sigma=_KL_START, num_noise=1)[0],
        images)
  if step_size is None:
    step_size = jnp.maximum(step_ratio * epsilon / max(num_steps, 1), min_step_size)
  success_fn = functools.partial(_success, logits_fn, labels, targets, noise)
  adversarial = ascent.pgd(
      loop_keys, objective, images, threat_model, num_steps=num_steps, step_size=step_size,
      random_start=random_start, restarts=restarts, direction=direction, start=start,
      success_fn=success_fn)
  return AttackResult(adversarial, success_fn(adversarial), objective(adversarial))


def fgsm_attack(key, logits_fn, images, labels, *, epsilon, noise=None,
                norm: Norm = 'linf', order: threat_models.Order = 'ball_then_box',
                l1_top_k: Count = 1):
  """One step of length epsilon along the steepest ascent of the cross-entropy.

  Arguments and result as `pgd_attack` (with noise: of the SmoothAdv objective). For l1 a single
  entry changes, by epsilon; within the box by less, and by nothing where it is at that end of the
  box already, which 'ball_only' avoids.

  Reference:
    Goodfellow et al. 2015; Shaham et al. 2015, equation 11.
  """
  return pgd_attack(key, logits_fn, images, labels, epsilon=epsilon, noise=noise, norm=norm,
                    num_steps=1, step_ratio=1., order=order, l1_top_k=l1_top_k)


def no_attack(key, logits_fn, images, labels, *, epsilon=0., noise=None):
  """The images themselves: a method with this attack trains on clean (or noisy) images."""
  del key, epsilon
  objective = (_objective(logits_fn, images, labels, None, 'cross_entropy') if noise is None
               else smoothing.smoothadv_objective(logits_fn, labels, noise))
  return AttackResult(images, _success(logits_fn, labels, None, noise, images), objective(images))


def _threat_model(norm, epsilon, order, l1_top_k):
  if norm not in threat_models.NORMS:
    raise ValueError(f'norm is {norm!r}; one of {", ".join(threat_models.NORMS)} is allowed')
  if norm == 'l1':
    return threat_models.l1(epsilon, order=order, top_k=l1_top_k)
  return threat_models.NORMS[norm](epsilon, order=order)


def _objective(logits_fn, images, labels, targets, loss):
  if targets is not None:
    if loss != 'cross_entropy':
      raise ValueError(f"loss is {loss!r} with a target; 'cross_entropy' is allowed")
    return jax.tree_util.Partial(_targeted, logits_fn, labels, targets)
  if loss == 'kl':
    return jax.tree_util.Partial(_kl, logits_fn, jax.lax.stop_gradient(logits_fn(images)))
  if loss not in losses.OBJECTIVES:
    raise ValueError(f'loss is {loss!r}; one of {", ".join(losses.OBJECTIVES)}, kl is allowed')
  return losses.OBJECTIVES[loss](logits_fn, labels)


def _targeted(logits_fn, labels, targets, images):
  return losses.targeted_logit_gap(logits_fn(images), labels, targets)


def _kl(logits_fn, clean_logits, images):
  return losses.kl_divergence(clean_logits, logits_fn(images))


def _smoothed_objective(logits_fn, labels, targets, noise, sigma, loss, kind):
  if loss != 'cross_entropy':
    raise ValueError(f"loss is {loss!r} with noise; 'cross_entropy' is allowed")
  if kind not in smoothing.OBJECTIVES:
    raise ValueError(f'smoothed_objective is {kind!r}; '
                     f'one of {", ".join(smoothing.OBJECTIVES)} is allowed')
  kwargs = {}
  if kind == 'gradient_free':
    if sigma is None or (not isinstance(sigma, jax.core.Tracer) and not sigma > 0):
      raise ValueError(f"sigma is {sigma}; smoothed_objective 'gradient_free' needs it above 0")
    kwargs['sigma'] = sigma
  make = smoothing.OBJECTIVES[kind]
  if targets is None:
    return make(logits_fn, labels, noise, **kwargs)
  return jax.tree_util.Partial(_negative, make(logits_fn, targets, noise, **kwargs))


def _negative(objective, images):
  return -objective(images)


def _choose_targets(key, logits_fn, images, labels, noise, target):
  """A class other than the label: drawn, or the one with the least (smoothed) probability."""
  if noise is None:
    scores = logits_fn(images)
  else:
    scores = smoothing.smoothed_log_probs(logits_fn, images, noise)
  num_classes = scores.shape[-1]
  if target == 'random':
    shift = jax.vmap(lambda k: jax.random.randint(k, (), 1, num_classes))(key)
    return (labels + shift) % num_classes
  if target == 'least_likely':
    is_label = labels[:, None] == jnp.arange(num_classes)
    return jnp.argmin(jnp.where(is_label, jnp.inf, scores), axis=-1)
  raise ValueError(f"target is {target!r}; 'none', 'random' or 'least_likely' is allowed")


def _success(logits_fn, labels, targets, noise, images):
  if noise is None:
    predicted = losses.predicted(logits_fn(images))
  else:
    predicted = smoothing.vote(logits_fn, images, noise)
  return predicted != labels if targets is None else predicted == targets
