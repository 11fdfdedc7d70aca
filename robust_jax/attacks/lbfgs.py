"""The first adversarial examples: box-constrained L-BFGS, on the host."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from robust_jax import inputs, schema, smoothing
from robust_jax.attacks import objectives
from robust_jax.attacks.targets import choose_targets, reached
from robust_jax.types import AttackResult, Count, Positive

TargetClass = Literal['runner_up', 'least_likely']

# ||delta|| becomes sqrt(||delta||^2 + _SMOOTH^2), whose gradient is defined at zero.
_SMOOTH = 1e-3
# The objective where it is not finite.
_NEVER = 1e30
# Evaluations of the objective for each iteration, which its line search may take at most.
_EVALUATIONS = 3


@schema.checked
def lbfgs_attack(key, logits_fn, images, labels, *, epsilon, noise=None,
                 target_class: TargetClass = 'runner_up', targets=None, num_steps: Count = 50,
                 num_constants: Count = 10, initial_constant: Positive = 1.):
  """A close image of another class: min over delta of c ||delta||_2 + L(x + delta, t), in the box.

  The largest c with which the minimiser is adversarial is searched: c times or divided by ten
  until one value succeeds and one fails, then geometric bisection. Of all adversarial minimisers
  the closest is kept. Where none is within epsilon, the perturbation (or none, where there was
  none) is shortened to epsilon, and `success` says what that does.

  SciPy's L-BFGS-B runs on the host, image by image, with a compiled gradient, which may be asked
  for about 3 num_constants num_steps times: seconds an image. So it is for evaluation alone: it
  cannot be traced, and a callback from a compiled function into JAX could wait for itself for ever.

  Args:
    key: not used; nothing is random.
    logits_fn: images -> logits, normalisation included.
    images: [batch, ...] in [0, 1].
    labels: [batch] int.
    epsilon: l2 radius in pixel units, scalar or [batch].
    noise: None, or [num_noise, batch, ...]: L is then -log (1/m) sum_i F(x + delta + n_i)_t, and
      the noisy copies' majority vote says which class it is.
    target_class: t is the label's strongest rival on the clean image, and any wrong class is a
      success; or the least likely class, which has to be reached.
    targets: [batch] int, given targets, which have to be reached; they take the place of
      `target_class`.
    num_steps: L-BFGS iterations for each c, at most.
    num_constants: values of c.
    initial_constant: the first.

  Returns:
    AttackResult; the objective is log F(x + delta)_t.

  Raises:
    ValueError: an argument that its annotation excludes, or called within a compiled function, as
      a training step is.

  Reference:
    Szegedy et al., Intriguing properties of neural networks, 2014, section 4.1, equation 1.
  """
  del key
  if isinstance(images, jax.core.Tracer):
    raise ValueError('lbfgs runs on the host and cannot be compiled, as a training step is; use '
                     'pgd or another attack there')
  victim = smoothing.victim(logits_fn, noise)
  images, labels, epsilon, targets = inputs.attacked(victim, images, labels, epsilon=epsilon,
                                                     targets=targets)
  images, labels = np.asarray(images), np.asarray(labels)
  epsilon = np.broadcast_to(epsilon, len(images))
  any_class = targets is None and target_class == 'runner_up'
  if targets is None:
    targets = choose_targets(None, victim, images, labels, target=target_class)
  targets = np.asarray(targets, np.int32)

  def judge(images, rows):
    """([batch] log F_t, [batch] success) of attacked images in the place of `rows`."""
    objective, predicted = _judge(victim.rows(rows), images, targets[rows])
    return objective, reached(predicted, labels[rows], None if any_class else targets[rows])

  found, undefined = images.copy(), np.zeros(len(images), bool)
  for i in np.flatnonzero((epsilon > 0) & ~judge(images, slice(None))[1]):
    one = slice(i, i + 1)
    minimise = functools.partial(_minimise, victim.rows(one), images[one], targets[one],
                                 num_steps=num_steps)
    closest, undefined[i] = _closest(minimise, lambda x, one=one: judge(x, one)[1][0],
                                     images[one], num_constants, initial_constant)
    perturbation = closest - images[one]
    shortened = perturbation * min(1., epsilon[i] / max(np.linalg.norm(perturbation), 1e-30))
    found[one] = np.clip(images[one] + shortened, 0, 1)
  found = jnp.asarray(found)
  objective, success = judge(found, slice(None))
  return AttackResult(found, success, objective, jnp.asarray(undefined))


def _closest(minimise, succeeds, image, num_constants, constant):
  """The closest successful minimiser over the constants tried; the image itself if none was.

  Returns it, and whether a minimisation met what is not finite.
  """
  best, least = image, np.inf
  succeeded = failed = None
  undefined = False
  for _ in range(num_constants):
    found, stuck = minimise(constant)
    undefined |= stuck
    if succeeds(found):
      succeeded = constant
      norm = np.linalg.norm(found - image)
      if norm < least:
        best, least = found, norm
    else:
      failed = constant
    if failed is None:
      constant *= 10
    elif succeeded is None:
      constant /= 10
    else:
      constant = float(np.sqrt(succeeded * failed))
  return best, undefined


def _minimise(victim, image, target, constant, *, num_steps):
  """argmin over x in the box of c ||x - image|| + L(x, t), for one image [1, ...].

  Returns it, and whether some value or gradient on the way was not finite. The search turns back
  there; if it is so at the image itself, that is the result.
  """
  undefined = False

  def evaluate(x):
    nonlocal undefined
    value, gradient = _value_and_gradient(
        x.reshape(image.shape).astype(np.float32), victim, image, target, np.float32(constant))
    value, gradient = float(value), np.asarray(gradient, np.float64).ravel()
    if np.isfinite(value) and np.isfinite(gradient).all():
      return value, gradient
    undefined = True
    return _NEVER, np.zeros_like(gradient)

  result = optimize.minimize(
      evaluate, image.ravel().astype(np.float64), jac=True, method='L-BFGS-B',
      bounds=optimize.Bounds(0, 1),
      options={'maxiter': num_steps, 'maxfun': _EVALUATIONS * num_steps, 'ftol': 1e-6})
  return np.clip(result.x.reshape(image.shape), 0, 1).astype(np.float32), undefined


@jax.jit
@jax.value_and_grad
def _value_and_gradient(x, victim, image, target, constant):
  distance = jnp.sqrt(jnp.sum(jnp.square(x - image)) + _SMOOTH**2)
  return constant * distance + objectives.cross_entropy(victim.logits(x), target)[0]


@jax.jit
def _judge(victim, images, targets):
  """(log F_t, predicted classes), [batch] each."""
  logits = victim.logits(images)
  return -objectives.cross_entropy(logits, targets), smoothing.majority(logits)
