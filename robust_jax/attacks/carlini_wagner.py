"""Carlini & Wagner's l2 attack: a penalty on what is classified right, and Adam within the box."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from robust_jax import inputs, schema, smoothing
from robust_jax.attacks import compilation, objectives, threat_models
from robust_jax.attacks.targets import reached
from robust_jax.attacks.threat_models import column
from robust_jax.types import Array, AttackResult, Count, NonNegative, Positive

# What pixels are moved from the ends of the box, in halves of it: keeps their w finite.
_INSIDE = 1e-6
# Adam's shares of the past in its moments, and what keeps its steps finite.
_FIRST, _SECOND, _LEAST = 0.9, 0.999, 1e-8
# While no c has succeeded, the next is so many times as large.
_GROWTH = 10.
# A minimisation is looked at so often, and ends where the objective has not fallen by this part.
_LOOKS = 10
_FALLEN = 0.9999


class _Search(NamedTuple):
  """One entry an example.

  Attributes:
    best, norm: the closest image so far that is misclassified with the margin that is asked for,
      and its l2 distance; inf: none.
    undefined: whether some gradient was not finite.
  """

  best: Array
  norm: Array
  undefined: Array


@schema.checked
def carlini_wagner(key, logits_fn, images, labels, *, epsilon, noise=None,
                   norm: Literal['l2'] = 'l2', num_steps: Count = 1000, num_constants: Count = 9,
                   initial_constant: Positive = 1e-3, learning_rate: Positive = 0.01,
                   confidence: NonNegative = 0., abort_early: bool = True, targets=None):
  """Minimises ||x' - x||^2 + c max(kappa - m(x'), 0): a close image, misclassified by a margin.

  m is the margin max_{j != y} z_j - z_y (with a target t, z_t - max_{j != t} z_j), and
  x' = (1 + tanh w) / 2 is in the box whatever w is. Adam minimises over w, from that of x. Of all
  iterates with m >= kappa that are misclassified the closest is kept. For each image c is
  searched: ten times as large until a minimisation has met such an iterate, then by bisection,
  down where it has and up where not.

  The defaults are those of the authors' code, but for 1,000 steps where that has 10,000.

  Args:
    key: not used; nothing is random.
    logits_fn: images -> logits, normalisation included; see `pgd_attack`.
    images: [batch, ...] in [0, 1].
    labels: [batch] int.
    epsilon: the largest l2 norm in pixel units, scalar or [batch]; inf: the closest found, at any
      distance. It does not change the search.
    noise: None, or [num_noise, batch, ...] from `smoothing.sample_noise`, held fixed: z = log F
      with F the mean of the noisy copies' probabilities, and the majority of their predictions
      says what is misclassified.
    norm: 'l2', the only one that it is made for.
    num_steps: of Adam for each c, at most.
    num_constants: values of c.
    initial_constant: the first.
    learning_rate: Adam's.
    confidence: kappa, in logits.
    abort_early: after each tenth of num_steps, end the minimisation of an image whose objective is
      not below 0.9999 times what it was at the look before.
    targets: [batch] int, classes that have to be reached.

  Returns:
    AttackResult: the closest image kept where its distance is epsilon at most, or else the image
    itself. Images that are misclassified as they are stay so. The objective is the margin.

  Raises:
    ValueError: an argument that its annotation excludes.

  Reference:
    Carlini & Wagner, Towards evaluating the robustness of neural networks, 2017, section VI.A.
  """
  del key
  victim = smoothing.victim(logits_fn, noise)
  images, labels, epsilon, targets = inputs.attacked(victim, images, labels, epsilon=epsilon,
                                                     targets=targets, any_radius=True)
  return compilation.call(
      _carlini_wagner, logits_fn, victim, images, labels, epsilon, targets, num_steps=num_steps,
      num_constants=num_constants, initial_constant=initial_constant, learning_rate=learning_rate,
      confidence=confidence, abort_early=abort_early)


def _carlini_wagner(victim, images, labels, epsilon, targets, *, num_steps, num_constants,
                    initial_constant, learning_rate, confidence, abort_early):
  # atanh((1 - _INSIDE) (2 x - 1)), without the rounding of 1 +- tanh near the ends of the box.
  log = lambda x: jnp.log(2 * (1 - _INSIDE) * jnp.clip(x, 0, 1) + _INSIDE)
  start = (log(images) - log(1 - images)) / 2
  nearly = _in_box(start)
  every = -(-num_steps // _LOOKS)
  wrong = reached(victim.predict(images), labels, targets)

  def judge(x):
    """([batch] margin, [batch] misclassified) from one pass."""
    logits = victim.logits(x)
    return (objectives.margin(logits, labels, targets),
            reached(smoothing.majority(logits), labels, targets))

  def minimise(constant, search):
    """The search after a minimisation, and which images have met an adversarial one, [batch]."""

    def summed(w):
      x = _in_box(w)
      margin, adversarial = judge(x)
      objective = jnp.sum(jnp.square(x - nearly), axis=tuple(range(1, x.ndim)))
      objective += constant * jnp.maximum(confidence - margin, 0)
      adversarial &= (margin >= confidence) | (confidence == 0)
      return jnp.sum(objective), (objective, x, adversarial)

    def step(state):
      number, w, (first, second), search, met, done, before = state
      (_, (objective, x, adversarial)), gradient = jax.value_and_grad(summed, has_aux=True)(w)
      undefined = ~threat_models.all_finite(gradient)
      gradient = jnp.where(column(undefined, w), 0, gradient)
      first = _FIRST * first + (1 - _FIRST) * gradient
      second = _SECOND * second + (1 - _SECOND) * jnp.square(gradient)
      count = (number + 1).astype(w.dtype)
      scale = jnp.sqrt(second / (1 - _SECOND**count)) + _LEAST
      moved = w - learning_rate * first / (1 - _FIRST**count) / scale
      w = jnp.where(column(done | undefined, w), w, moved)
      size = threat_models.norms(x - images, 'l2')
      closer = adversarial & (size < search.norm)
      search = _Search(jnp.where(column(closer, x), x, search.best),
                       jnp.where(closer, size, search.norm), search.undefined | undefined)
      if abort_early:
        look = number % every == 0
        done |= look & ~(objective <= _FALLEN * before)
        before = jnp.where(look, objective, before)
      return number + 1, w, (first, second), search, met | adversarial, done, before

    moments = jnp.zeros_like(start), jnp.zeros_like(start)
    state = (jnp.int32(0), start, moments, search, jnp.zeros(len(images), bool), wrong,
             jnp.full(len(images), jnp.inf))
    state = jax.lax.while_loop(lambda state: (state[0] < num_steps) & ~jnp.all(state[5]), step,
                               state)
    return state[3], state[4]

  def try_constant(_, state):
    constant, low, high, search = state
    search, met = minimise(constant, search)
    low, high = jnp.where(met, low, constant), jnp.where(met, constant, high)
    constant = jnp.where(jnp.isinf(high), _GROWTH * constant, (low + high) / 2)
    return constant, low, high, search

  first = jnp.full(len(images), initial_constant, jnp.float32)
  # What is misclassified already is as close as can be.
  search = _Search(images, jnp.where(wrong, 0., jnp.inf), jnp.zeros(len(images), bool))
  state = first, jnp.zeros_like(first), jnp.full_like(first, jnp.inf), search
  search = jax.lax.fori_loop(0, num_constants, try_constant, state)[-1]
  found = jnp.where(column(search.norm <= epsilon, images), search.best, images)
  margin, success = judge(found)
  return AttackResult(found, success, margin, search.undefined)


def _in_box(w):
  return jax.nn.sigmoid(2 * w)  # (1 + tanh w) / 2.
