"""Draws by a rule: a stream of images through a pool of fixed size, decided one by one.

All images of the pool share the forward passes of one call, each with as many draws as it is from
its next look. An image that is decided leaves, and the next of the stream takes its place. So
memory does not grow with the number of images, shapes never change, and devices stay full until
the stream ends. The draws of an image depend on nothing beside it, nor do the looks, so neither do
its certificate and its counts: not on the pool, the devices or an interruption.
"""

import dataclasses
import time
from typing import Any, NamedTuple

import numpy as np

from robust_jax import inputs, keys, smoothing
from robust_jax.certification import rules, sampling
from robust_jax.types import Certificate

# Draws that are asked for in one call, over all images: a signal waits for its end.
_ROWS = 2**17


class Example(NamedTuple):
  """One image to certify.

  Attributes:
    index: its id, which with the key decides the noise.
    label: None where it is not known.
    image: [...] float32, pixel units.
  """

  index: int
  label: int | None
  image: np.ndarray


class StoppedCertificate(NamedTuple):
  """Certificates of a batch, and how they came about.

  Attributes:
    prediction, radius, p_lower, counts0, counts: as in `types.Certificate`; counts0 is 0 where the
      label is the class.
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
  """The images that are decided after one call for votes, and what is known of the others.

  Attributes:
    index: [batch] int, the images that are decided now, in increasing order; there may be none.
    labels: list of their labels.
    certificate: their Certificate, or StoppedCertificate by a rule that stops early; None if there
      are none.
    seconds: [batch] float64, their shares of the time of all their calls.
    unfinished: dicts of plain values, from which the others can go on: see `certify_stream`.
  """

  index: np.ndarray
  labels: list[int | None]
  certificate: Certificate | StoppedCertificate | None
  seconds: np.ndarray
  unfinished: list[dict[str, Any]]


@dataclasses.dataclass
class _Slot:
  """An unfinished image: as `StoppedCertificate`, the class None until it is chosen.

  `drawn` counts its draws so far, those that choose its class or those that are counted for it.
  """

  index: int
  label: int | None
  chosen: int | None
  counts0: np.ndarray | int
  counts: np.ndarray | int
  drawn: int
  looks: list
  seconds: float
  state: Any

  def wanted(self, rule):
    """The draws at which its class is chosen, or the counts are looked at next."""
    return rule.num_selecting if self.chosen is None else int(rule.looks[len(self.looks)])


def certify_stream(key, logits_fn, examples, rule, *, pool, begun=None, count=sampling.count):
  """Certifies a stream of images by a rule, and yields a `Round` after each call for votes.

  Args:
    key: one key, the root of the certification.
    logits_fn: images -> [batch, classes] logits.
    examples: iterable of `Example`; no more than `pool` of them are held at a time.
    rule: `rules.Rule`.
    pool: images that are drawn for in one call.
    begun: {index: dict} of images that are unfinished, from `Round.unfinished`; they go on when the
      stream comes to them.
    count: what counts votes: `sampling.count` or one that shares its passes among devices.

  Yields:
    Round.

  Raises:
    ValueError: no label where the rule tests it, impossible counts in `begun`, or an image that
      does not suit the rule's noise.
  """
  if pool < 1:
    raise ValueError(f'pool must be at least 1, got {pool}')
  phase_keys = keys.fold_in(key, np.array([sampling.SELECT, sampling.ESTIMATE]))
  base = rule.source.base(smoothing.as_pytree(logits_fn))
  examples, begun = iter(examples), dict(begun or {})
  slots, images = {}, None
  while True:
    for place in sorted(set(range(pool)) - slots.keys()):
      example = next(examples, None)
      if example is None:
        break
      if images is None:
        images = np.zeros((pool, *np.shape(example.image)), np.float32)
      image = inputs.images(np.asarray(example.image)[None], name=f'image {example.index}')
      rule.source.check(image, rule.n, rule.alpha)
      images[place] = example.image
      slots[place] = _slot(rule, example, begun.pop(example.index, None))
    if not slots:
      return
    begin = time.monotonic()
    ids, phase, start, num = _next_draws(rule, slots, pool)
    votes = np.asarray(count(phase_keys[phase], base, images, ids, start, num, sigma=rule.sigma,
                             batch_size=rule.batch_size, noise_fn=rule.source.noise_fn))
    _add(rule, slots, votes, num)
    seconds = time.monotonic() - begin
    for place, slot in slots.items():
      slot.seconds += seconds * float(num[place] / num.sum())
    yield _round(rule, slots, begun)


def _next_draws(rule, slots, pool):
  """(ids, phase, start, num), [pool] int32 each: the draws of the images {place: _Slot} to ask for.

  phase is 0 where they choose the class and 1 where they are counted for it.
  """
  ids, phase, start, num = np.zeros((4, pool), np.int32)
  for place, slot in slots.items():
    ids[place], phase[place] = slot.index, slot.chosen is not None
    start[place], num[place] = slot.drawn, slot.wanted(rule) - slot.drawn
  if num.sum() > _ROWS:
    num = np.minimum(num, max(_ROWS // pool, 1))
  return ids, phase, start, num


def _round(rule, slots, begun):
  """The `Round` after a call; takes the images that are decided out of `slots`."""
  decided = [place for place, slot in slots.items() if not rule.undecided(slot.state)[0]]
  finished = sorted((slots.pop(place) for place in decided), key=lambda slot: slot.index)
  return Round(
    np.array([slot.index for slot in finished], np.int64), [slot.label for slot in finished],
    _certificate(rule, finished) if finished else None,
    np.array([slot.seconds for slot in finished]),
    [_saved(slot) for slot in slots.values()] + list(begun.values()))


def _slot(rule, example, saved):
  """An image as it enters the pool, at its beginning or where `_saved` has left it."""
  index, label = int(example.index), None if example.label is None else int(example.label)
  if rule.num_selecting == 0 and label is None:
    raise ValueError("labels must be given where the rule tests them, choose='label'")
  if saved is None:
    chosen = label if rule.num_selecting == 0 else None
    return _Slot(index, label, chosen, 0, 0, 0, [], 0., rule.start(1))
  looks = [list(look) for look in saved['looks']]
  # Older logs have no 'drawn': they keep images only right after a look.
  drawn = saved.get('drawn', looks[-1][0] if looks else 0)
  return _Slot(index, label, saved['chosen'], np.array(saved['counts0']),
               np.array(saved['counts']), drawn, looks, saved['time'], rules.replay(rule, [looks]))


def _saved(slot):
  """Plain values from which `_slot` goes on."""
  plain = lambda counts: np.asarray(counts).tolist()
  return {'idx': slot.index, 'chosen': slot.chosen, 'counts0': plain(slot.counts0),
          'counts': plain(slot.counts), 'drawn': slot.drawn, 'looks': slot.looks,
          'time': slot.seconds}


def _add(rule, slots, votes, num):
  """Adds votes [pool, classes] to the images of {place: _Slot}, and looks at those due.

  Raises:
    ValueError: a label that is no class.
  """
  looking, num_classes = [], votes.shape[1]
  for place, slot in slots.items():
    if slot.chosen is not None and not 0 <= slot.chosen < num_classes:
      raise ValueError(f'image {slot.index}: label must be in 0, ..., {num_classes - 1}, got '
                       f'{slot.chosen}')
    slot.drawn += int(num[place])
    due = slot.drawn == slot.wanted(rule)
    if slot.chosen is None:
      slot.counts0 = slot.counts0 + votes[place]
      if due:
        slot.chosen, slot.drawn = int(slot.counts0.argmax()), 0
    else:
      slot.counts = slot.counts + votes[place]
      if due:
        slot.looks = [*slot.looks, [slot.drawn, int(slot.counts[slot.chosen])]]
        looking.append(slot)
  if looking:
    draws, hits = np.array([slot.looks[-1] for slot in looking]).T
    state = rule.look(_stacked(slot.state for slot in looking), hits, draws)
    for i, slot in enumerate(looking):
      slot.state = type(state)(*(column[i:i + 1] for column in state))


def _stacked(states):
  states = list(states)
  return type(states[0])(*map(np.concatenate, zip(*states)))


def _certificate(rule, slots):
  chosen = np.array([slot.chosen for slot in slots])
  draws = np.array([slot.drawn for slot in slots])
  counts = np.array([slot.counts for slot in slots])
  counts0 = np.array([np.broadcast_to(slot.counts0, counts.shape[1:]) for slot in slots])
  certain, radius, p_lower = rule.conclude(_stacked(slot.state for slot in slots),
                                           rules.most_of_another(counts, chosen, draws))
  certificate = Certificate(np.where(certain, chosen, -1), radius, p_lower, counts0, counts)
  if not rule.stops_early:
    return certificate
  return StoppedCertificate(*certificate, chosen, draws, [slot.looks for slot in slots])
