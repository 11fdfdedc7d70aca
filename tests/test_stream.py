"""Certification look by look: packed counts, pools, devices and resumes change no certificate."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import linear_logits

from robust_jax import certification, keys
from robust_jax.certification import count, rules, stream

KEY = keys.root(5)
SMALL = {'sigma': 0.25, 'n': 600, 'n0': 30, 'batch_size': 64, 'first_look': 20}


def classifier():
  weights = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
  return jax.tree_util.Partial(linear_logits, weights, np.zeros(4, np.float32))


def some_images(num):
  return np.random.default_rng(3).uniform(size=(num, 3, 4, 1)).astype(np.float32)


def same(one, two):
  for a, b in zip(one, two, strict=True):
    np.testing.assert_array_equal(a, b) if isinstance(a, np.ndarray) else np.testing.assert_(a == b)


# Counts with a start and a number of draws of each image.


def votes(images, ids, start, num, key=KEY, count=count, **kwargs):
  return np.asarray(count(key, classifier(), images, ids, start, num, sigma=0.5, batch_size=16,
                          **kwargs))


@pytest.mark.parametrize('num', [[5, 0, 33, 1, 0], [0, 0, 0, 0, 7], [16, 16, 0, 16, 16]])
def test_each_image_has_its_own_draws(num):
  images, ids, start = some_images(5), np.array([9, 4, 77, 0, 3]), np.array([0, 100, 7, 3, 50])
  together = votes(images, ids, start, np.array(num))
  np.testing.assert_array_equal(together.sum(axis=-1), num)
  for i in range(5):
    if num[i]:
      alone = votes(images[i:i + 1], ids[i:i + 1], int(start[i]), num[i])
      np.testing.assert_array_equal(alone[0], together[i])
  for devices in (2, 8):
    counter = certification.sharded_count(jax.devices()[:devices])
    np.testing.assert_array_equal(
      votes(images, ids, start, np.array(num), count=counter), together)


def test_no_draws_at_all():
  assert not votes(some_images(2), np.arange(2), 5, np.zeros(2, int)).any()


def test_each_image_may_be_in_its_own_phase():
  images, ids, num = some_images(3), np.arange(3), np.array([20, 50, 9])
  phases = keys.fold_in(KEY, np.array([3, 8, 3]))
  together = votes(images, ids, 0, num, key=phases)
  for i in range(3):
    alone = votes(images[i:i + 1], ids[i:i + 1], 0, int(num[i]), key=phases[i])
    np.testing.assert_array_equal(alone[0], together[i])


def test_other_numbers_of_draws_compile_nothing():
  traces = []

  def traced(weights, images):
    traces.append(None)
    return images.reshape(len(images), -1) @ weights

  logits_fn = jax.tree_util.Partial(traced, np.ones((12, 4), np.float32))
  for counter in (count, certification.sharded_count(jax.devices()[:2])):
    run = lambda num, counter=counter: counter(
      KEY, logits_fn, some_images(3), np.arange(3), np.zeros(3, int), np.array(num), sigma=0.5,
      batch_size=8)
    run([1, 2, 3])
    num_traces = len(traces)
    run([100, 0, 7])
    assert len(traces) == num_traces


@pytest.mark.parametrize(('start', 'num', 'message'), [
  (0, [1, 2], r'num .*, got \(2,\)'),
  ([0, 0, 0, 0], 1, r'start .*, got \(4,\)'),
  (0, [1, -1, 2], 'num .*, got -1'),
  ([0, -5, 0], 1, 'start .*, got -5'),
  (0, [2**30] * 3, f'rows .*, got {3 * 2**30}'),
  ([0, 2**31 - 2, 0], [0, 2, 0], r'start \+ num .*, got 2147483648'),
])
def test_draws_that_cannot_be_counted(start, num, message):
  with pytest.raises(ValueError, match=message):
    votes(some_images(3), np.arange(3), np.array(start), np.array(num))


# Certificates.

STOPPING = [
  pytest.param(certification.RadiusGrid(**SMALL), id='sequential'),
  pytest.param(certification.RadiusGrid(**SMALL, radii=(0.1, 0.4), choose='label'), id='label'),
  pytest.param(certification.Anytime(**SMALL, tolerance=1.0), id='anytime'),
]
RULES = pytest.mark.parametrize('rule', STOPPING)


@RULES
def test_certificates_do_not_depend_on_pool_or_devices(rule):
  images, labels, ids = some_images(9), np.repeat([3, 0, 3], 3), np.arange(9) * 5
  run = lambda **kwargs: certification.certify_by_rule(
    KEY, classifier(), images, rule, labels=labels, example_ids=ids, **kwargs)
  whole = run()
  assert len(set(whole.draws)) > 2 and len(set(whole.radius)) > 1
  for pool in (1, 4):
    same(run(pool=pool), whole)
  for devices in (2, 8):
    same(run(pool=3, count=certification.sharded_count(jax.devices()[:devices])), whole)


@RULES
def test_a_certificate_is_that_of_its_counts(rule):
  labels = np.repeat([3, 0, 3], 3)
  found = certification.certify_by_rule(KEY, classifier(), some_images(9), rule, labels=labels)
  root = lambda phase: jax.random.fold_in(KEY, phase)
  for i in range(9):
    image, ids = some_images(9)[i:i + 1], np.array([i])
    draws = lambda phase, num, image=image, ids=ids: np.asarray(count(
      root(phase), classifier(), image, ids, 0, int(num), sigma=0.25, batch_size=64))[0]
    counts0 = draws(certification.SELECT, rule.num_selecting) if rule.num_selecting else np.zeros(4)
    chosen = counts0.argmax() if rule.num_selecting else labels[i]
    np.testing.assert_array_equal(found.counts0[i], counts0)
    assert found.chosen[i] == chosen
    state, looks = rule.start(1), []
    for n in rule.looks:
      if not rule.undecided(state)[0]:
        break
      counts = draws(certification.ESTIMATE, n)
      looks.append([n, counts[chosen]])
      state = rule.look(state, counts[chosen:chosen + 1], n)
    certain, radius, p_lower = rule.conclude(state)
    assert found.looks[i] == looks and found.draws[i] == looks[-1][0]
    np.testing.assert_array_equal(found.counts[i], counts)
    assert found.prediction[i] == (chosen if certain[0] else -1)
    assert found.radius[i] == radius[0] and found.p_lower[i] == p_lower[0]
    same(rules.replay(rule, [found.looks[i]]), state)


def test_labels_ask_for_certified_accuracy():
  # Its own class is certified where it is the label, and nothing else is.
  images = some_images(9)
  kwargs = {**SMALL, 'radii': (0.25,)}
  own = certification.certify_by_rule(
    KEY, classifier(), images, certification.RadiusGrid(**kwargs))
  rule = certification.RadiusGrid(**kwargs, choose='label')
  right = certification.certify_by_rule(KEY, classifier(), images, rule, labels=own.chosen)
  for name in ('prediction', 'radius', 'counts', 'draws'):
    np.testing.assert_array_equal(getattr(right, name), getattr(own, name))
  wrong = certification.certify_by_rule(KEY, classifier(), images, rule,
                                        labels=(own.chosen + 1) % 4)
  assert (wrong.prediction == -1).all() and (wrong.radius == 0).all()
  assert wrong.draws.mean() < own.draws.mean()
  with pytest.raises(ValueError, match='labels'):
    certification.certify_by_rule(KEY, classifier(), images, rule)


def examples(num, taken=None):
  for i, image in enumerate(some_images(num)):
    if taken is not None:
      taken.append(i)
    yield stream.Example(i, None, image)


def test_a_stream_takes_no_more_images_than_the_pool_holds():
  rule, taken, done = certification.RadiusGrid(**SMALL), [], 0
  for each in certification.certify_stream(KEY, classifier(), examples(40, taken), rule, pool=4):
    assert len(taken) - done <= 4
    assert len(taken) == 40 or len(taken) - done == 4, 'places were left empty'
    done += len(each.index)
    assert len(each.unfinished) == len(taken) - done
  assert done == 40


@pytest.mark.parametrize('rule', [
  *STOPPING, pytest.param(certification.Fixed(sigma=0.25, n=230, n0=30, batch_size=64), id='fixed'),
])
@pytest.mark.parametrize('rows', [2**17, 100])
def test_a_stream_goes_on_from_any_round(rows, rule, monkeypatch):
  monkeypatch.setattr(stream, '_ROWS', rows)  # Few: a call ends before the next look.
  labeled = lambda left: (each._replace(label=3 if each.index % 3 else 0) for each in examples(12)
                          if each.index in left)
  run = lambda left, begun=None, pool=5: list(certification.certify_stream(
    KEY, classifier(), labeled(left), rule, pool=pool, begun=begun))
  rows = lambda rounds: [
    (index, label, *(column[i] if isinstance(column, list) else column[i].tolist()
                     for column in each.certificate))
    for each in rounds for i, (index, label) in enumerate(zip(each.index, each.labels))]
  whole = run(range(12))
  assert len(whole) > (8 if rule.stops_early else 5)
  for stop in (1, 2, len(whole) // 2, len(whole) - 1):
    before = whole[:stop]
    done = {row[0] for row in rows(before)}
    begun = {entry['idx']: entry for entry in before[-1].unfinished}
    rest = run(set(range(12)) - done, begun)
    assert rows(before) + rows(rest) == rows(whole), 'the order as well, where the pool is the same'
    other = run(set(range(12)) - done, begun, pool=2)
    assert sorted(rows(before) + rows(other)) == sorted(rows(whole))
    assert all(entry in other[0].unfinished for entry in list(begun.values())[2:])


# Rules.


def test_the_default_grid_is_what_the_cap_can_certify():
  for sigma, n, expected in ((0.25, 100_000, 0.75), (0.5, 100_000, 1.75), (0.12, 1000, 0.25),
                             (0.1, 100, 0.)):
    rule = certification.RadiusGrid(sigma=sigma, n=n)
    np.testing.assert_array_equal(rule.grid, np.arange(0, expected + 0.1, 0.25))


def test_sigma_is_at_most_that_of_the_noise():
  for sigma in (0.1, 0.12, 0.3, 0.5, 1.1):
    drawn = rules.drawn_sigma(sigma)
    assert drawn <= sigma and drawn <= np.float32(sigma)
    assert np.float32(drawn) == np.float32(sigma)
    rule = certification.RadiusGrid(sigma=sigma)
    np.testing.assert_array_equal(rule.scores, rule.grid / drawn)


def test_most_draws_of_a_round():
  rule = certification.RadiusGrid(sigma=0.5, n=1000, first_look=100, look_growth=2.0, n0=10)
  assert rule.looks.tolist() == [100, 200, 400, 800, 1000] and rules.most_draws(rule) == 400
  assert rules.most_draws(dataclasses.replace(rule, n0=900)) == 900
  assert rules.most_draws(certification.Fixed(sigma=0.5, n=1000)) == 1000


def test_the_label_needs_no_draws_to_choose_it():
  for make in (certification.RadiusGrid, certification.Anytime):
    assert make(sigma=0.5, n0=0, choose='label').num_selecting == 0

