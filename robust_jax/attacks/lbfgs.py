"""The first adversarial examples: box-constrained L-BFGS, on the host."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from robust_jax import losses, smoothing
from robust_jax.types import AttackResult, Count, Positive

TargetClass = Literal['runner_up', 'least_likely']

# ||delta|| becomes sqrt(||delta||^2 + _SMOOTH^2), whose gradient is defined at zero.
_SMOOTH = 1e-3
# Evaluations of the objective for each iteration, which its line search may take at most.
_EVALUATIONS = 3


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
    ValueError: called within a compiled function, such as a training step.

  Reference:
    Szegedy et al., Intriguing properties of neural networks, 2014, section 4.1, equation 1.
  """
  del key
  if isinstance(images, jax.core.Tracer):
    raise ValueError('lbfgs runs on the host and cannot be compiled; pgd or another attack is '
                     'allowed in training')
  if not isinstance(logits_fn, jax.tree_util.Partial):
    logits_fn = jax.tree_util.Partial(logits_fn)
  images, labels = np.asarray(images, np.float32), np.asarray(labels)
  epsilon = np.broadcast_to(np.asarray(epsilon, np.float32), len(images))
  reached = targets is not None or target_class != 'runner_up'
  if targets is None:
    targets = _rivals(logits_fn, images, labels, noise, target_class)
  targets = np.asarray(targets, np.int32)
  found = images.copy()
  for i in range(len(images)):
    one = slice(i, i + 1)
    attack = _One(logits_fn, images[one], labels[one], targets[one],
                  None if noise is None else noise[:, one], reached)
    if epsilon[i] > 0 and not attack.succeeds(images[one]):
      perturbation = attack.closest(num_steps, num_constants, initial_constant) - images[one]
      norm = np.linalg.norm(perturbation)
      shortened = perturbation * min(1., epsilon[i] / max(norm, 1e-30))
      found[one] = np.clip(images[one] + shortened, 0, 1)
  found = jnp.asarray(found)
  loss, predicted = _judge(logits_fn, found, targets, noise)
  success = predicted == targets if reached else predicted != labels
  return AttackResult(found, success, -loss)


class _One:
  """The search for one image [1, ...]."""

  def __init__(self, logits_fn, image, label, target, noise, reached):
    self._logits_fn, self._target, self._noise = logits_fn, target, noise
    self._image, self._label, self._reached = image, label, reached

  def succeeds(self, image):
    predicted = _judge(self._logits_fn, image, self._target, self._noise)[1]
    return bool((predicted == self._target if self._reached else predicted != self._label)[0])

  def closest(self, num_steps, num_constants, constant):
    """The closest adversarial image found; the image itself if none was."""
    best, least = self._image, np.inf
    succeeded = failed = None
    for _ in range(num_constants):
      found = self._minimise(constant, num_steps)
      if self.succeeds(found):
        succeeded = constant
        norm = np.linalg.norm(found - self._image)
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
    return best

  def _minimise(self, constant, num_steps):
    shape = self._image.shape

    def evaluate(x):
      value, gradient = _value_and_gradient(
          x.reshape(shape).astype(np.float32), self._logits_fn, self._image, self._target,
          self._noise, np.float32(constant))
      return float(value), np.asarray(gradient, np.float64).ravel()

    result = optimize.minimize(
        evaluate, self._image.ravel().astype(np.float64), jac=True, method='L-BFGS-B',
        bounds=optimize.Bounds(0, 1),
        options={'maxiter': num_steps, 'maxfun': _EVALUATIONS * num_steps, 'ftol': 1e-6})
    return np.clip(result.x.reshape(shape), 0, 1).astype(np.float32)


def _target_loss(logits_fn, images, targets, noise):
  if noise is None:
    return losses.cross_entropy(logits_fn(images), targets)
  return smoothing.smoothadv_objective(logits_fn, targets, noise)(images)


@jax.jit
@jax.value_and_grad
def _value_and_gradient(x, logits_fn, image, target, noise, constant):
  distance = jnp.sqrt(jnp.sum(jnp.square(x - image)) + _SMOOTH**2)
  return constant * distance + _target_loss(logits_fn, x, target, noise)[0]


@jax.jit
def _judge(logits_fn, images, targets, noise):
  """(L at the targets, predicted classes), [batch] each."""
  loss = _target_loss(logits_fn, images, targets, noise)
  if noise is None:
    return loss, losses.predicted(logits_fn(images))
  return loss, smoothing.vote(logits_fn, images, noise)


def _rivals(logits_fn, images, labels, noise, target_class):
  if noise is None:
    scores = logits_fn(images)
  else:
    scores = smoothing.smoothed_log_probs(logits_fn, images, noise)
  is_label = labels[:, None] == np.arange(scores.shape[-1])
  if target_class == 'runner_up':
    return jnp.argmax(jnp.where(is_label, -jnp.inf, scores), axis=-1)
  if target_class == 'least_likely':
    return jnp.argmin(jnp.where(is_label, jnp.inf, scores), axis=-1)
  raise ValueError(f"target_class is {target_class!r}; 'runner_up' or 'least_likely' is allowed")
