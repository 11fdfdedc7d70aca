"""Losses and classes of logits, one value per example; the caller reduces."""

import jax
import jax.numpy as jnp
import optax

from robust_jax import inputs

# The authors' guard against equal logits.
_DLR_FLOOR = 1e-12


def predicted(logits):
  """The class of the largest logit, the lowest of several; -1, no class, where a logit is NaN.

  Args:
    logits: [..., classes].

  Returns:
    [...] int32.
  """
  return jnp.where(jnp.isnan(logits).any(axis=-1), -1, jnp.argmax(logits, axis=-1))


def cross_entropy(logits, labels, *, label_smoothing=0.):
  """-(1 - s) log softmax(logits)_y - s/K sum_k log softmax(logits)_k.

  Args:
    logits: [batch, classes].
    labels: [batch] int.
    label_smoothing: s, the weight of the uniform distribution over all K classes.

  Returns:
    [batch] float32, finite wherever the gap between logits is a finite float32, its gradient for
    all finite logits. Beyond that (3.4e38) it is infinite, which ends a training. (optax's
    subtracts logits before it takes the logarithm of their sum: at 1e8 it is 0 where this is
    right.)

  Reference:
    Szegedy et al., Rethinking the Inception architecture, 2016, section 7 (label smoothing).
  """
  labels = inputs.labels(labels, len(logits), num_classes=logits.shape[-1])
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  loss = -_at(log_probs, labels)
  if label_smoothing == 0:
    return loss
  return (1 - label_smoothing) * loss - label_smoothing * jnp.mean(log_probs, axis=-1)


def margin(logits, labels):
  """max_{j != y} z_j - z_y: positive exactly where the example is misclassified.

  Args:
    logits: [batch, classes], two classes at least.
    labels: [batch] int.

  Returns:
    [batch] float32.

  Reference:
    Carlini & Wagner, Towards evaluating the robustness of neural networks, 2017.
  """
  labels = inputs.labels(labels, len(logits), num_classes=logits.shape[-1])
  logits = logits.astype(jnp.float32)
  is_label = labels[:, None] == jnp.arange(logits.shape[-1])
  label_logit = _at(logits, labels)
  return jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1) - label_logit


def dlr(logits, labels):
  """(max_{j != y} z_j - z_y) / (z_(1) - z_(3)), z_(k) the k-th largest logit: the DLR loss.

  It changes neither with a shift nor with the scale of the logits, so that it has a gradient where
  those of the cross-entropy vanish. With two classes, which have no third logit, it is the margin.

  Args:
    logits: [batch, classes], two classes at least.
    labels: [batch] int.

  Returns:
    [batch] float32.

  Reference:
    Croce & Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks, 2020, equation 6.
  """
  gap = margin(logits, labels)
  if logits.shape[-1] < 3:
    return gap
  top = jax.lax.top_k(logits.astype(jnp.float32), 3)[0]
  return gap / (top[:, 0] - top[:, 2] + _DLR_FLOOR)


def targeted_dlr(logits, labels, targets):
  """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2), z_(k) the k-th largest logit.

  With fewer than four classes, which have no fourth logit, it is z_t - z_y.

  Args:
    logits: [batch, classes].
    labels: [batch] int.
    targets: [batch] int.

  Returns:
    [batch] float32.

  Reference:
    Croce & Hein 2020, equation 7.
  """
  gap = targeted_logit_gap(logits, labels, targets)
  if logits.shape[-1] < 4:
    return gap
  top = jax.lax.top_k(logits.astype(jnp.float32), 4)[0]
  return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _DLR_FLOOR)


def targeted_logit_gap(logits, labels, targets):
  """z_t - z_y: positive where the target beats the label.

  Args:
    logits: [batch, classes].
    labels: [batch] int.
    targets: [batch] int.

  Returns:
    [batch] float32.

  Reference:
    Kolter & Madry, Adversarial robustness: theory and practice, chapter 4.
  """
  for name, classes in (('labels', labels), ('targets', targets)):
    inputs.labels(classes, len(logits), num_classes=logits.shape[-1], name=name)
  logits = logits.astype(jnp.float32)
  return _at(logits, targets) - _at(logits, labels)


def log_complement(logits, classes):
  """log(1 - softmax(logits)_c), as a sum over the other classes.

  So it is finite where softmax(logits)_c is 1 in float32, which has no value from 1 - 6e-8 to 1.

  Args:
    logits: [batch, classes], two classes at least.
    classes: [batch] int, c.

  Returns:
    [batch] float32.
  """
  classes = inputs.labels(classes, len(logits), num_classes=logits.shape[-1], name='classes')
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  is_class = classes[:, None] == jnp.arange(logits.shape[-1])
  return jax.nn.logsumexp(jnp.where(is_class, -jnp.inf, log_probs), axis=-1)


def kl_divergence(logits_p, logits_q):
  """KL(softmax(logits_p) || softmax(logits_q)) = sum_c p_c (log p_c - log q_c).

  Args:
    logits_p: [batch, classes].
    logits_q: [batch, classes].

  Returns:
    [batch] float32, >= 0 up to rounding; gradients flow to both arguments.
  """
  log_p, log_q = (jax.nn.log_softmax(z.astype(jnp.float32)) for z in (logits_p, logits_q))
  return optax.losses.kl_divergence_with_log_targets(log_q, log_p)


def _at(values, classes):
  """values[i, classes[i]], [batch]; NaN where there is no such class (-1 would be the last one)."""
  classes = jnp.where(classes < 0, values.shape[-1], classes)
  return jnp.take_along_axis(values, classes[:, None], axis=-1)[:, 0]
