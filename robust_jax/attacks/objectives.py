"""What attacks ascend: losses of the logits of a classifier's copies, one value per example.

`victim.objective(loss, *args)` makes an Objective of each, images -> [batch] (`smoothing.victim`).
Their logits are [m, batch, classes]. A classifier without noise is its only copy, m = 1, and the
losses are those of module `losses`. A smoothed one has m noisy copies, logits_fn(x + n_i), and F is
the mean of their probabilities, F = (1/m) sum_i softmax(logits_i).

Given targets, `cross_entropy`, `margin`, `naive` and `gradient_free` are minus those of the
targets: to ascend them is to come nearer to being classified so.
"""

import math

import jax
import jax.numpy as jnp

from robust_jax import losses
from robust_jax.smoothing import mean_logits


def cross_entropy(logits, labels, targets=None):
  """-log F_y: the cross-entropy of one copy, the SmoothAdv objective of several.

  Args:
    logits: [m, batch, classes].
    labels: [batch] int.
    targets: None, or [batch] int.

  Returns:
    [batch].

  Reference:
    Salman et al., Provably robust deep learning via adversarially trained smoothed classifiers,
    2019, equation 5.
  """
  if targets is not None:
    return -cross_entropy(logits, targets)
  if len(logits) == 1:
    return losses.cross_entropy(logits[0], labels)
  return math.log(len(logits)) - jax.nn.logsumexp(_log_probs(logits, labels), axis=0)


def margin(logits, labels, targets=None):
  """max_{j != y} z_j - z_y, with z = log F for several copies; arguments as `cross_entropy`."""
  if targets is not None:
    return -margin(logits, targets)
  return losses.margin(mean_logits(logits), labels)


def dlr(logits, labels, targets=None):
  """`losses.dlr`, given targets `losses.targeted_dlr`, with z = log F for several copies."""
  if targets is not None:
    return losses.targeted_dlr(mean_logits(logits), labels, targets)
  return losses.dlr(mean_logits(logits), labels)


def kl(logits, clean_logits):
  """KL(F(x) || F(x')), F(x) from `clean_logits` [m, batch, classes], F(x') from `logits`."""
  return losses.kl_divergence(mean_logits(clean_logits), mean_logits(logits))


def logit_gap(logits, labels, targets):
  """z_t - z_y, with z = log F for several copies: positive where the target beats the label.

  Args:
    logits: [m, batch, classes].
    labels, targets: [batch] int.

  Reference:
    Kolter & Madry, Adversarial robustness: theory and practice, chapter 4.
  """
  return losses.targeted_logit_gap(mean_logits(logits), labels, targets)


def naive(logits, labels, targets=None):
  """The mean loss of the copies, (1/m) sum_i -log softmax(logits_i)_y.

  Not the loss of the smoothed classifier, and weaker as an attack on it (Salman et al. 2019,
  section 2.2).

  Args:
    logits: [m, batch, classes].
    labels: [batch] int.
    targets: None, or [batch] int.
  """
  if targets is not None:
    return -naive(logits, targets)
  return -jnp.mean(_log_probs(logits, labels), axis=0)


def gradient_free(victim, labels, targets=None, *, sigma):
  """The SmoothAdv objective with Stein's estimate in place of its gradient.

  grad E F(x + n)_y = E[F(x + n)_y n] / sigma^2, hence the ascent direction of J at x' is
  -sum_i w_i n_i / sigma^2 with weights w_i = F(x' + n_i)_y / sum_k F(x' + n_k)_y. The value is
  that of `cross_entropy`; the network is evaluated but never differentiated.

  As published it has no baseline: where the F(x' + n_i)_y hardly differ, it is minus the mean of
  the draws, whatever the network says. So it needs many draws, the more the more pixels there are;
  few are hardly better than a random direction, and with two an attack may lower its objective.

  Args:
    victim: `smoothing.Victim` with noise of standard deviation `sigma`; two draws at least, as a
      single one has weight 1 whatever the network says of it.
    labels: [batch] int.
    targets: None, or [batch] int.
    sigma: positive, in pixel units.

  Returns:
    Objective, images -> [batch].

  Raises:
    ValueError: a single draw, or sigma that is None or not positive.

  Reference:
    Salman et al. 2019, section 2.2; Stein's lemma.
  """
  if sigma is None or (not isinstance(sigma, jax.core.Tracer) and not sigma > 0):
    raise ValueError(f"sigma must be above 0 for smoothed_objective 'gradient_free', got {sigma}")
  if victim.num_copies < 2:
    raise ValueError('num_noise must be at least 2 for smoothed_objective '
                     f"'gradient_free', got {victim.num_copies}")
  return jax.tree_util.Partial(_gradient_free, victim, labels, targets, sigma)


def _gradient_free(victim, labels, targets, sigma, images):
  fixed = jax.lax.stop_gradient(images)
  logits = victim.logits(fixed)

  classes, sign = (labels, 1) if targets is None else (targets, -1)
  weights = jax.nn.softmax(_log_probs(logits, classes), axis=0)
  ascent = -sign * jnp.einsum('mb,mb...->b...', weights, victim.noise) / sigma**2
  value = sign * cross_entropy(logits, classes)
  # Zero in value, `ascent` in gradient: any optimiser of objectives can follow it.
  offset = (ascent * (images - fixed)).reshape(len(images), -1)
  return value + jnp.sum(offset, axis=-1)


def _log_probs(logits, classes):
  """log softmax(logits_i)_c: [m, batch]."""
  return jax.vmap(lambda copy: -losses.cross_entropy(copy, classes))(logits)
