"""Draws by a rule: a stream of images through a pool of fixed size, decided one by one.

All images of the pool share the forward passes of one call, each with as many draws as it is from
its next look. Whoever is decided leaves, and the next of the stream takes the place. So memory
does not grow with the number of images, shapes never change, and devices stay full until the
stream ends. The draws of an image depend on nothing beside it, nor do the looks, so neither do its
certificate and its counts: not on the pool, the devices or an interruption.
"""

import dataclasses
import time
from typing import Any, NamedTuple

import numpy as np

from robust_jax import keys
from robust_jax.certification import rules, sampling
from robust_jax.certification.certify import ESTIMATE, SELECT


class Example(NamedTuple):
  """One image to certify: its id, which decides its noise; its label (None: not known); [...]."""

  index: int
  label: int | None
  image: np.ndarray


class StoppedCertificate(NamedTuple):
  """Certificates of a batch, as `types.Certificate` has them, and how they came about.

  Attributes:
    prediction: [batch] int, -1 where the classifier abstains.
    radius: [batch] float64, the certified l2 radius in pixel units; 0 where it abstains.
    p_lower: [batch] float64, lower confidence bound of the probability of the chosen class.
    counts0: [batch, classes] int, votes that chose the class; 0 where the label did.
    counts: [batch, classes] int, votes of the draws that were looked at.
    chosen: [batch] int, the class that was tested.
    draws: [batch] int, of the last look.
    looks: for each image, [[draws, hits], ...] after every look.
  """

  prediction: Any
  radius: Any
  p_lower: Any
  counts0: Any
  counts: Any
  chosen: Any
  draws: Any
  looks: list


class Round(NamedTuple):
  """What one call for votes has brought.

  Attributes:
    index: [batch] int, the images that are decided now, in increasing order; there may be none.
    labels: list of them.
    certificate: StoppedCertificate of these; None if there are none.
    seconds: [batch] float64, their shares of the time of all their calls.
    unfinished: dicts of plain values, from which the others can go on: see `certify_stream`.
  """

  index: np.ndarray
  labels: list[int | None]
  certificate: StoppedCertificate | None
  seconds: np.ndarray
  unfinished: list[dict[str, Any]]


@dataclasses.dataclass
class _Slot:
  """An image on its way: as `StoppedCertificate`, the class None until it is chosen."""

  index: int
  label: int | None
  chosen: int | None
  counts0: np.ndarray | int
  counts: np.ndarray | int
  looks: list
  seconds: float
  state: Any

  @property
  def draws(self):
    return self.looks[-1][0] if self.looks else 0


def certify_stream(key, logits_fn, examples, rule, *, pool, begun=None, count=sampling.count):
  """Certifies a stream of images by a rule, and yields a `Round` after each call for votes.

  Args:
    key: one key, the root of the certification.
    logits_fn: images -> [batch, classes] logits.
    examples: iterable of `Example`; no more than `pool` of them are held at a time.
    rule: a `rules.Rule`.
    pool: images that are drawn for in one call.
    begun: {index: dict} of images that were on their way before, from `Round.unfinished`; they
      go on after their last look when the stream comes to them.
    count: what counts votes: `sampling.count` or one that shares its passes among devices.

  Yields:
    Round.

  Raises:
    ValueError: no label where the rule tests it, a `begun` with counts that cannot be, or an
      image that the rule's noise is not for.
  """
  if pool < 1:
    raise ValueError(f'pool={pool}; at least 1 is allowed')
  phase_keys = keys.fold_in(key, np.array([SELECT, ESTIMATE]))
  base = rule.source.base(logits_fn)
  examples, begun = iter(examples), dict(begun or {})
  slots, images = {}, None
  while True:
    for place in range(pool):
      example = next(examples, None) if place not in slots else None
      if example is None:
        continue
      if images is None:
        images = np.zeros((pool, *np.shape(example.image)), np.float32)
      rule.source.check(np.asarray(example.image)[None], rule.plan.looks[-1], rule.alpha)
      images[place] = example.image
      slots[place] = _slot(rule, example, begun.pop(example.index, None))
    if not slots:
      return
    begin = time.monotonic()
    ids, phase, start, num = np.zeros((4, pool), np.int32)
    for place, slot in slots.items():
      ids[place], phase[place] = slot.index, slot.chosen is not None
      start[place], num[place] = _next_draws(rule, slot)
    votes = np.asarray(count(phase_keys[phase], base, images, ids, start, num, sigma=rule.sigma,
                             batch_size=rule.batch_size, noise_fn=rule.source.noise_fn))
    for slot in slots.values():
      if slot.chosen is not None and not 0 <= slot.chosen < votes.shape[1]:
        raise ValueError(f'image {slot.index}: label={slot.chosen}; 0, ..., {votes.shape[1] - 1} '
                         'is allowed')
    _add(rule, slots, votes, num)
    seconds = time.monotonic() - begin
    for place, slot in slots.items():
      slot.seconds += seconds * float(num[place] / num.sum())
    decided = {place for place, slot in slots.items() if not rule.undecided(slot.state)[0]}
    finished = sorted((slots.pop(place) for place in decided), key=lambda slot: slot.index)
    yield Round(
      np.array([slot.index for slot in finished], np.int64), [slot.label for slot in finished],
      _certificate(rule, finished) if finished else None,
      np.array([slot.seconds for slot in finished]),
      [_saved(slot) for slot in slots.values()] + list(begun.values()))


def certify_by_rule(key, logits_fn, images, rule, *, labels=None, example_ids=None, pool=50,
                    count=sampling.count):
  """Certificates of a batch of images by a rule; see `certify_stream`.

  Args:
    key, logits_fn, rule, pool, count: as there.
    images: [batch, ...] float32, pixel units.
    labels: [batch] int, where the rule tests the label.
    example_ids: [batch] int, which with the key decide the noise; 0, ..., batch - 1 if None.

  Returns:
    StoppedCertificate, NumPy.
  """
  ids = np.arange(len(images)) if example_ids is None else np.asarray(example_ids)
  labels = [None] * len(images) if labels is None else labels
  if not len(images):
    raise ValueError('images has no image; at least 1 is allowed')
  order = {int(index): i for i, index in enumerate(ids)}
  if len(order) < len(images):
    raise ValueError(f'example_ids={ids.tolist()}; distinct ids are allowed')
  examples = map(Example, ids.tolist(), labels, np.asarray(images))
  rounds = [each for each in certify_stream(key, logits_fn, examples, rule, count=count,
                                            pool=min(pool, len(images))) if each.certificate]
  place = np.argsort([order[index] for each in rounds for index in each.index.tolist()])
  columns = zip(*(each.certificate for each in rounds))
  *arrays, looks = [sum(column, []) if isinstance(column[0], list) else np.concatenate(column)
                    for column in columns]
  return StoppedCertificate(*(array[place] for array in arrays), [looks[i] for i in place])


def _slot(rule, example, saved):
  """An image as it enters the pool, at its beginning or where `_saved` has left it."""
  index, label = int(example.index), None if example.label is None else int(example.label)
  if rule.n0 == 0 and label is None:
    raise ValueError('labels are missing, which the rule tests; choose=\'majority\' needs none')
  if saved is None:
    chosen = label if rule.n0 == 0 else None
    return _Slot(index, label, chosen, 0, 0, [], 0., rule.start(rule.plan, 1))
  return _Slot(index, label, saved['chosen'], np.array(saved['counts0']),
               np.array(saved['counts']), [list(look) for look in saved['looks']], saved['time'],
               rules.replay(rule, [saved['looks']]))


def _saved(slot):
  """Plain values from which `_slot` goes on."""
  plain = lambda counts: np.asarray(counts).tolist()
  return {'idx': slot.index, 'chosen': slot.chosen, 'counts0': plain(slot.counts0),
          'counts': plain(slot.counts), 'looks': slot.looks, 'time': slot.seconds}


def _next_draws(rule, slot):
  """(start, num) of the draws that choose its class, or lead to the next look."""
  if slot.chosen is None:
    return 0, rule.n0
  return slot.draws, rule.plan.looks[len(slot.looks)] - slot.draws


def _add(rule, slots, votes, num):
  """Adds votes [pool, classes] to the images of {place: _Slot}, and looks at them."""
  looking = []
  for place, slot in slots.items():
    if slot.chosen is None:
      slot.counts0 = votes[place]
      slot.chosen = int(votes[place].argmax())
    else:
      slot.counts = slot.counts + votes[place]
      slot.looks = [*slot.looks, [slot.draws + int(num[place]), int(slot.counts[slot.chosen])]]
      looking.append(slot)
  if looking:
    draws, hits = np.array([slot.looks[-1] for slot in looking]).T
    state = rule.look(rule.plan, _stacked(slot.state for slot in looking), hits, draws)
    for i, slot in enumerate(looking):
      slot.state = type(state)(*(column[i:i + 1] for column in state))


def _stacked(states):
  states = list(states)
  return type(states[0])(*map(np.concatenate, zip(*states)))


def _certificate(rule, slots):
  chosen = np.array([slot.chosen for slot in slots])
  counts = np.array([slot.counts for slot in slots])
  counts0 = [np.broadcast_to(slot.counts0, counts.shape[1:]) for slot in slots]
  certain, radius, p_lower = rule.conclude(rule.plan, _stacked(slot.state for slot in slots))
  return StoppedCertificate(
    np.where(certain, chosen, -1), radius, p_lower, np.array(counts0), counts, chosen,
    np.array([slot.draws for slot in slots]), [slot.looks for slot in slots])
