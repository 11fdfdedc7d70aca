"""What the certification rules share: their interface, their looks at the counts, their checks.

A rule decides, from the draws of one class, what is certified and when drawing ends. The class is
fixed before the first draw that is counted for it: the most frequent of n0 separate draws or, where
the question is certified accuracy, the true label. `hits` are the draws of that class, `draws` all
of them: one with NaN logits is drawn and hits nothing. Statistics are float64 from integer counts,
on the host.

An image that is decided keeps its state whatever later looks say, so that its certificate depends
on its own draws and the rule, not on the images beside it.
"""

import math
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np

from robust_jax import inputs, schema
from robust_jax.certification import bounds, noise_sources
from robust_jax.types import Count, Interval

AtLeastOne = Annotated[float, Interval(1)]
BelowOne = Annotated[float, Interval(0, 1, open_high=True)]
Choice = Literal['majority', 'label']


class Conclusion(NamedTuple):
  """What is certified of each image.

  Attributes:
    certain: [batch] bool; where False the classifier abstains.
    radius: [batch] float64, the certified l2 radius in pixel units; 0 where it abstains.
    p_lower: [batch] float64, lower confidence bound of the probability of the class.
  """

  certain: np.ndarray
  radius: np.ndarray
  p_lower: np.ndarray


class Rule(Protocol):
  """A frozen dataclass whose fields are those of config.certify: `Fixed`, `RadiusGrid`, `Anytime`.

  Attributes:
    sigma: standard deviation of the noise, pixel units.
    n: the most draws of an image.
    alpha: probability that a certificate is false, an image.
    batch_size: rows of one forward pass; a part of what is certified (see sampling).
    stops_early: whether drawing may end before n draws.
    num_selecting: draws that choose the class, 0 where it is the label.
    looks: [num_looks] int64, increasing to n: the draws after which the counts are looked at.
    source: of the noise.
  """

  sigma: float
  n: int
  alpha: float
  batch_size: int
  stops_early: bool
  num_selecting: int
  looks: np.ndarray
  source: noise_sources.Source

  def start(self, batch: int) -> Any:
    """The state of images before the first draw: arrays [batch, ...], among them hits and draws."""

  def look(self, state: Any, hits: np.ndarray, draws: np.ndarray | int) -> Any:
    """The state after looking at the counts of all draws so far.

    The error probability holds whenever and however often this is called: `looks` are what the
    cost was planned for. Images that are decided are passed over, whatever their counts.

    Args:
      state: that of the last look.
      hits: [batch] integer, draws of the class so far.
      draws: integer, broadcast to [batch], draws so far; at most n.

    Raises:
      ValueError: counts that are not integers with 0 <= hits <= draws <= n, or that do not go on
        from those of the state.
    """

  def undecided(self, state: Any) -> np.ndarray:
    """[batch] bool: images that need more draws."""

  def conclude(self, state: Any, rivals: np.ndarray | None = None) -> Conclusion:
    """What is certified; it may be asked before every image is decided.

    Args:
      state: that of the last look.
      rivals: [batch], draws of the most frequent other class (`most_of_another`), which only the
        runner-up bound of `Fixed` needs.
    """

  def settings(self) -> dict[str, Any]:
    """What a log says of the rule besides its fields: plain values."""


def most_draws(rule):
  """The most draws of an image between two looks, or to choose its class."""
  return max(rule.num_selecting, int(np.diff(rule.looks, prepend=0).max()))


def replay(rule, looks):
  """The states [batch] of images after their looks, for each [[draws, hits], ...].

  Raises:
    ValueError: counts that `Rule.look` refuses.
  """
  state = rule.start(len(looks))
  # Copies, as the fields of a state may share their arrays.
  state = type(state)(*map(np.array, state))
  for number in range(max(map(len, looks), default=0)):
    image = np.array([i for i, each in enumerate(looks) if len(each) > number])
    draws, hits = np.array([looks[i][number] for i in image]).T
    before = type(state)(*(column[image] for column in state))
    for column, new in zip(state, rule.look(before, hits, draws)):
      column[image] = new
  return state


def look_schedule(n: Count, *, first_look: Count = 100, look_growth: AtLeastOne = 1.1):
  """Numbers of draws after which to look: multiples of first_look below n, and n.

  Each is the last times look_growth, rounded up to the next multiple; look_growth = 1 takes
  every multiple. An image is drawn at most about look_growth times as long as it needs.

  Returns:
    [num_looks] int64, increasing.

  Raises:
    ValueError: n or first_look below 1, look_growth below 1 or not finite.
  """
  inputs.check('n', n, n >= 1, 'at least 1')
  inputs.check('first_look', first_look, first_look >= 1, 'at least 1')
  inputs.check('look_growth', look_growth, 1 <= look_growth < math.inf, 'in [1, inf)')
  looks, multiple = [], 1
  while multiple * first_look < n:
    looks.append(multiple * first_look)
    multiple = max(multiple + 1, math.ceil(multiple * look_growth))
  return np.array([*looks, n], np.int64)


def most_of_another(counts, chosen, draws):
  """Draws of the most frequent class but the chosen one; draws without a class are one more class.

  Args:
    counts: [batch, classes] votes.
    chosen: [batch] int, the class that is left out.
    draws: integer, broadcast to [batch]; those beyond the votes had NaN logits.

  Returns:
    [batch] integer.
  """
  others = with_no_class(counts, draws)
  np.put_along_axis(others, np.asarray(chosen)[:, None], 0, axis=-1)
  return others.max(axis=-1)


def with_no_class(counts, draws):
  """[batch, classes + 1]: the last column counts the draws that voted for no class (NaN)."""
  votes = counts.sum(axis=-1, keepdims=True)
  draws = np.broadcast_to(np.asarray(draws), len(counts))[:, None]
  return np.concatenate([counts, draws - votes], axis=-1)


def drawn_sigma(sigma):
  """The noise is drawn with float32(sigma): a larger sigma would overstate the radius."""
  return min(sigma, float(np.float32(sigma)))


def split_alpha(rule):
  """(alpha_cap, alpha_anytime): what the bound at the cap has of alpha, and what the looks have."""
  alpha = noise_sources.counted_alpha(rule.alpha, rule.noise)
  alpha_cap = rule.cap_share * alpha
  return alpha_cap, alpha - alpha_cap


def reach(rule):
  """The largest radius that n draws, all of them hits, can certify at alpha_cap.

  Raises:
    ValueError: none, not even 0.
  """
  least = math.ceil(math.log(rule.alpha_cap) / math.log(0.5))
  if rule.n < least:
    raise ValueError(f'n must be at least {least} to certify a class at alpha_cap='
                     f'{rule.alpha_cap:g}, got {rule.n}')
  p_lower = bounds.clopper_pearson_lower(rule.n, rule.n, rule.alpha_cap)
  return bounds.certified_radius(p_lower, drawn_sigma(rule.sigma))


def check_fields(rule):
  """Raises ValueError, in one line, at the first field that is not of its type and range."""
  for name, field in schema.fields(type(rule)).items():
    value = getattr(rule, name)
    schema.check_argument(name, value, field.hint)
    if schema.plain_type(field.hint) is int:
      inputs.check(name, value, value < 2**31, 'an integer below 2^31')


def num_selecting(rule):
  """Draws that choose the class, 0 where it is the label.

  Raises:
    ValueError: none, but the class is not the label.
  """
  if rule.choose == 'label':
    return 0
  inputs.check('n0', rule.n0, rule.n0 >= 1, "at least 1, or choose 'label'")
  return rule.n0


def check_counts(state, image, hits, draws, cap):
  """The counts for the next state [batch], and those of the images `image`, checked."""
  hits, draws = np.asarray(hits), np.asarray(draws)
  for name, values in (('hits', hits), ('draws', draws)):
    if values.dtype.kind not in 'iu':
      raise ValueError(f'{name} must be integers, got dtype {values.dtype}')
  if hits.shape != state.hits.shape:
    raise ValueError(f'hits must have shape {state.hits.shape}, got {hits.shape}')
  draws = np.broadcast_to(draws, hits.shape)
  k, n = hits[image].astype(np.int64), draws[image].astype(np.int64)
  new_hits, new_draws = k - state.hits[image], n - state.draws[image]
  for name, values, valid, expected in (
    ('draws', n, (n >= 1) & (n <= cap), f'in 1, ..., {cap}'),
    ('hits', k, (k >= 0) & (k <= n), 'in 0, ..., draws'),
    ('draws', n, new_draws >= 0, 'at least as many as at the last look'),
    ('hits', k, (new_hits >= 0) & (new_hits <= new_draws),
     'those of the last look and at most one more for each new draw'),
  ):
    inputs.check(name, values, valid, expected)
  return replaced(state.hits, image, k), replaced(state.draws, image, n), k, n


def replaced(values, index, new):
  """A copy of an array with new values at an index."""
  values = values.copy()
  values[index] = new
  return values
