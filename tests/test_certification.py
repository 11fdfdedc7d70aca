"""Counting, certification and prediction against classifiers whose probabilities are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from robust_jax import certification, keys
from robust_jax.certification import bounds, certify, count, predict, stream

SHAPE = (6, 6, 2)
IDS = np.array([3, 1000, 77], np.int32)


def half_space(images):
  """Class 0 where the first pixel is positive: p_0 = Phi(pixel / sigma), radius = pixel."""
  first = images.reshape(len(images), -1)[:, 0]
  return jnp.stack([first, jnp.zeros_like(first)], axis=-1)


def constant(images):
  return jnp.broadcast_to(jnp.array([0.0, 2.0, 1.0]), (len(images), 3))


def toy_logits(weights, images):
  return images.reshape(len(images), -1) @ weights


def conv_logits(params, images):
  hidden = jax.lax.conv_general_dilated(
    images - 0.5, params['conv'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  return jnp.tanh(hidden).mean(axis=(1, 2)) @ params['dense']


def toy(seed=0, classes=4):
  weights = np.random.default_rng(seed).normal(size=(np.prod(SHAPE), classes))
  return jax.tree_util.Partial(toy_logits, weights.astype(np.float32))


def conv_net(seed=0):
  random = np.random.default_rng(seed)
  return jax.tree_util.Partial(conv_logits, {
    'conv': random.normal(size=(3, 3, 2, 8)).astype(np.float32),
    'dense': random.normal(size=(8, 4)).astype(np.float32),
  })


def last_bits(logits_fn, images):
  """Votes by the last bits of the logits, so that any difference in rounding is another vote."""
  bits = jax.lax.bitcast_convert_type(logits_fn(images), jnp.int32).sum(axis=-1)
  return jax.nn.one_hot((bits ^ bits >> 3) & 3, 4)


def some_images(num=3):
  return np.random.default_rng(7).uniform(size=(num, *SHAPE)).astype(np.float32)


def votes(logits_fn, images, ids, start, num, **kwargs):
  kwargs = {'sigma': 0.5, 'batch_size': 16, **kwargs}
  return np.asarray(count(keys.root(5), logits_fn, images, ids, start, num, **kwargs))


NETWORKS = pytest.mark.parametrize(
  'logits_fn', [toy(), conv_net(), jax.tree_util.Partial(last_bits, conv_net())],
  ids=['toy', 'conv', 'last bits'],
)


# Counting.


def test_noise_is_jax_random_normal_whatever_the_threefry_flag():
  row_keys = keys.per_example(keys.root(0), 500)

  def rows(noise_fn):
    return jax.jit(jax.vmap(lambda key: noise_fn(key, (28, 28, 1))))(row_keys)

  with jax.threefry_partitionable(True):
    expected = rows(lambda key, shape: 0.5 * jax.random.normal(key, shape))
  for flag in (True, False):
    with jax.threefry_partitionable(flag):
      noise = rows(lambda key, shape: certification.gaussian_noise(key, shape, 0.5))
    assert noise.dtype == jnp.float32
    np.testing.assert_array_equal(noise, expected)


def test_counts_equal_a_loop_over_draws_with_the_key_rule_by_hand():
  images, logits_fn, start, num = some_images(), toy(), 4, 19
  expected = np.zeros((3, 4), int)
  weights = np.asarray(logits_fn.args[0])
  for i, example_id in enumerate(IDS):
    for j in range(start, start + num):
      key = jax.random.fold_in(jax.random.fold_in(keys.root(5), int(example_id)), j)
      noise = 0.5 * np.asarray(jax.random.normal(key, SHAPE, jnp.float32))
      expected[i, np.argmax((images[i] + noise).reshape(-1) @ weights)] += 1
  np.testing.assert_array_equal(votes(logits_fn, images, IDS, start, num), expected)


@NETWORKS
def test_counts_do_not_depend_on_grouping(logits_fn):
  images = some_images()
  whole = votes(logits_fn, images, IDS, 0, 53)
  assert whole.dtype == np.int32
  assert (whole > 0).sum() > 4, 'votes that are all alike would test nothing'
  np.testing.assert_array_equal(whole.sum(axis=-1), 53)
  ranges = [(0, 1), (1, 16), (17, 36)]
  np.testing.assert_array_equal(
    sum(votes(logits_fn, images, IDS, start, num) for start, num in ranges), whole
  )
  singles = [votes(logits_fn, images[i:i + 1], IDS[i:i + 1], 0, 53)[0] for i in range(3)]
  np.testing.assert_array_equal(singles, whole)
  order = np.array([2, 0, 1])
  np.testing.assert_array_equal(votes(logits_fn, images[order], IDS[order], 0, 53), whole[order])


@NETWORKS
@pytest.mark.parametrize('num_shards', [1, 2, 3, 8, 40])
def test_counts_of_the_shards_add_up(logits_fn, num_shards):
  images = some_images()
  shards = [
    votes(logits_fn, images, IDS, 2, 53, shard=shard, num_shards=num_shards)
    for shard in range(num_shards)
  ]
  np.testing.assert_array_equal(sum(shards), votes(logits_fn, images, IDS, 2, 53))
  if num_shards == 40:
    # 159 rows in passes of 16: the tenth pass holds 15, and shards beyond it hold none.
    assert [int(shard.sum()) for shard in shards] == [16] * 9 + [15] + [0] * 30


@NETWORKS
def test_counts_on_devices_are_those_on_one(logits_fn):
  counter = certification.sharded_count(jax.local_devices())
  np.testing.assert_array_equal(
    counter(keys.root(5), logits_fn, some_images(), IDS, 0, 53, sigma=0.12, batch_size=16),
    votes(logits_fn, some_images(), IDS, 0, 53, sigma=0.12))


def test_new_values_compile_nothing():
  traces = []

  def traced(weights, images):
    traces.append(None)
    return toy_logits(weights, images)

  def run(weights, start, num, sigma, shard, num_shards):
    logits_fn = jax.tree_util.Partial(traced, jnp.asarray(weights))
    return votes(
      logits_fn, some_images(), IDS, start, num, sigma=sigma, shard=shard, num_shards=num_shards
    )

  first = run(toy(0).args[0], 0, 100, 0.5, 0, 1)
  num_traces = len(traces)
  second = run(toy(1).args[0], 7, 1000, 0.25, 1, 2)
  assert len(traces) == num_traces
  assert first.sum() == 300
  assert second.sum() == 1496, '188 passes of 16 rows, 94 of them odd; the last holds 8'


READ = {}


def read_logits(images):
  return 0 * images.reshape(len(images), -1)[:, :2] + READ['bias']


def plain_reader(bias):
  """The class of one image by certify and by predict."""
  READ['bias'], image, key = bias, np.full((1, 2, 2, 1), 0.5, np.float32), jax.random.key(0)
  certificate = certify(key, read_logits, image, sigma=0.1, n0=10, n=50, alpha=0.01, batch_size=64)
  return [int(certificate.prediction[0]),
          int(predict(key, read_logits, image, sigma=0.1, n=50, batch_size=64)[0])]


def test_what_a_plain_function_reads_may_change():
  # As parameters that go on being trained: what was compiled at first must not be used again.
  assert plain_reader(jnp.asarray([1., 0.])) == [0, 0]
  assert plain_reader(jnp.asarray([0., 1.])) == [1, 1]


def test_nan_logits_vote_for_no_class():
  def partly_nan(images):
    first = images[:, 0]
    return jnp.stack([first, jnp.where(first > 0, first, jnp.nan)], axis=-1)

  counts = votes(partly_nan, np.zeros((1, 1), np.float32), [0], 0, 1000)
  positive = votes(half_space, np.zeros((1, 1), np.float32), [0], 0, 1000)[0, 0]
  np.testing.assert_array_equal(counts, [[positive, 0]])


def test_noise_source_is_replaceable():
  def up(key, shape, sigma):
    del key
    return jnp.full(shape, sigma)

  images = np.array([[-0.4], [-0.6]], np.float32)
  np.testing.assert_array_equal(
    votes(half_space, images, [0, 1], 0, 20, noise_fn=up), [[20, 0], [0, 20]]
  )


@pytest.mark.parametrize(('arguments', 'message'), [
  ({'num': 2**30}, f'rows .*, got {3 * 2**30}'),
  ({'start': 2**31 - 5}, r'start \+ num .*, got 2147483653'),
  ({'start': -1}, 'start .*, got -1'),
  ({'num': 0}, 'num .*, got 0'),
  ({'batch_size': 0}, 'batch_size .*, got 0'),
  ({'images': some_images(0), 'ids': []}, r'images .*\(0, 6, 6, 2\)'),
  ({'ids': [1, 2]}, r'example_ids .*\(2,\)'),
])
def test_count_rejects(arguments, message):
  arguments = {'images': some_images(), 'ids': IDS, 'start': 0, 'num': 10, **arguments}
  with pytest.raises(ValueError, match=message) as error:
    votes(toy(), **arguments)
  assert '\n' not in str(error.value)


# Certification.


def canned(counts0, counts):
  """A `count` that returns these counts, and the list of the arguments it was called with."""
  calls = []

  def fake(key, logits_fn, images, example_ids, start, num, *, sigma, batch_size, noise_fn=None):
    del logits_fn, images, sigma, batch_size, noise_fn
    # Of one image or of all.
    key, (start, num) = key.ravel()[0], (np.ravel(value)[0] for value in (start, num))
    calls.append((tuple(jax.random.key_data(key).tolist()), example_ids.tolist(), start, num))
    return jnp.asarray(counts0 if len(calls) == 1 else counts, jnp.int32)

  return fake, calls


def certify_counts(counts0, counts, **kwargs):
  fake, _ = canned(counts0, counts)
  n = kwargs.pop('n', 1000)
  images = np.zeros((len(counts), 1), np.float32)
  return certify(keys.root(0), constant, images, n0=10, n=n, batch_size=4, count=fake, **kwargs)


def test_certificate_formulas():
  counts0 = [[6, 4, 0], [0, 1, 9], [5, 5, 0], [10, 0, 0]]
  counts = [[900, 60, 40], [10, 20, 970], [480, 270, 250], [0, 1000, 0]]
  hits = np.array([900, 970, 480, 0])
  one = certify_counts(counts0, counts, sigma=0.5, alpha=0.001)
  p = stats.beta.ppf(0.001, hits[:3], 1000 - hits[:3] + 1)
  np.testing.assert_allclose(one.p_lower, [*p, 0], rtol=1e-10)
  np.testing.assert_array_equal(one.prediction, [0, 2, -1, -1])
  np.testing.assert_allclose(one.radius, [*(0.5 * stats.norm.ppf(p[:2])), 0, 0], rtol=1e-10)
  np.testing.assert_array_equal(one.counts0, counts0)
  np.testing.assert_array_equal(one.counts, counts)

  two = certify_counts(counts0, counts, sigma=0.5, alpha=0.001, bound='runner_up')
  p = stats.beta.ppf(0.0005, hits[:3], 1000 - hits[:3] + 1)
  other = stats.beta.isf(0.0005, np.array([60, 20, 270]) + 1, 1000 - np.array([60, 20, 270]))
  other = np.minimum(other, 1 - p)
  np.testing.assert_array_equal(two.prediction, [0, 2, 0, -1])
  np.testing.assert_allclose(two.p_lower[:3], p, rtol=1e-10)
  np.testing.assert_allclose(
    two.radius[:3], 0.25 * (stats.norm.ppf(p) - stats.norm.ppf(other)), rtol=1e-9
  )
  assert two.radius[3] == 0
  for certificate in (one, two):
    assert certificate.radius.dtype == certificate.p_lower.dtype == np.float64


def test_draws_without_a_vote_are_misses_and_a_rival():
  counts0, counts = [[9, 0]], [[600, 0]]
  p = stats.beta.ppf(0.001, 600, 401)
  assert certify_counts(counts0, counts, sigma=1.0, alpha=0.001).p_lower == pytest.approx(p)
  rival = certify_counts(counts0, [[600, 400]], sigma=1.0, bound='runner_up')
  no_vote = certify_counts(counts0, counts, sigma=1.0, bound='runner_up')
  assert no_vote.radius == rival.radius > 0


@pytest.mark.parametrize(('p_lower', 'prediction'), [
  (0.5, 1), (np.nextafter(0.5, 0), -1), (np.nextafter(0.5, 1), 1),
])
def test_a_bound_of_exactly_one_half_keeps_the_class_with_radius_0(
  monkeypatch, p_lower, prediction
):
  monkeypatch.setattr(
    bounds, 'clopper_pearson_lower', lambda k, n, alpha: np.full(len(k), p_lower)
  )
  certificate = certify_counts([[0, 10]], [[300, 700]], sigma=0.5)
  assert certificate.prediction == prediction
  assert certificate.radius == pytest.approx(0, abs=1e-15)
  if p_lower <= 0.5:
    assert certificate.radius == 0


def test_phases_keep_the_draws_apart():
  fake, calls = canned([[10, 0]], [[9, 1]])
  images = np.zeros((1, 1), np.float32)
  certify(keys.root(3), constant, images, sigma=0.5, n0=10, n=10, count=fake, example_ids=[42])
  predict(keys.root(3), constant, images, sigma=0.5, n=10, count=fake)
  phases = certification.SELECT, certification.ESTIMATE, certification.PREDICT
  expected = [
    tuple(jax.random.key_data(jax.random.fold_in(keys.root(3), phase)).tolist())
    for phase in phases
  ]
  assert calls == [
    (expected[0], [42], 0, 10), (expected[1], [42], 0, 10), (expected[2], [0], 0, 10)
  ]
  # The keys of the draws themselves: no two alike over phases, examples and draws.
  draws = [
    keys.fold_in(keys.fold_in(keys.fold_in(keys.root(3), phase), example_id), np.arange(200))
    for phase in phases for example_id in (0, 1, 42)
  ]
  data = np.concatenate([jax.random.key_data(draw) for draw in draws])
  assert len(np.unique(data, axis=0)) == len(data) == 1800


def test_unanimous_draws_have_a_closed_form():
  for n, alpha in ((500, 0.001), (5, 0.05)):
    certificate = certify(
      keys.root(0), constant, some_images(), sigma=0.25, n0=5, n=n, alpha=alpha, batch_size=64
    )
    p = alpha ** (1 / n)
    np.testing.assert_array_equal(certificate.prediction, 1)
    np.testing.assert_allclose(certificate.p_lower, p, rtol=1e-12)
    np.testing.assert_allclose(certificate.radius, 0.25 * stats.norm.ppf(p), rtol=1e-10)
  # So few draws certify nothing, even when they agree: alpha**(1/n) < 1/2.
  few = certify(
    keys.root(0), constant, some_images(), sigma=0.25, n0=5, n=9, alpha=0.001, batch_size=64
  )
  np.testing.assert_array_equal(few.prediction, -1)
  np.testing.assert_array_equal(few.radius, 0)


NUM = 2000
SIGMA = 0.5


def certify_half_space(distance, *, n0, n, **kwargs):
  """Certificates of 2,000 examples at `distance` from the boundary: p_0 = Phi(distance/sigma)."""
  images = np.full((NUM, 1), distance, np.float32)
  return certify(
    keys.root(11), half_space, images, sigma=SIGMA, n0=n0, n=n, batch_size=10_000, **kwargs
  )


def quantiles(rate):
  """What a count of independent events at `rate` in 2,000 exceeds once in a million times."""
  return stats.binom.ppf(1e-6, NUM, rate), stats.binom.ppf(1 - 1e-6, NUM, rate)


@pytest.mark.parametrize('bound', ['one_vs_rest', 'runner_up'])
@pytest.mark.parametrize('alpha', [0.05, 0.001])
@pytest.mark.parametrize('distance', [0.2, 0.8])
def test_false_certificates_are_as_rare_as_promised(distance, alpha, bound):
  n = 200
  certificate = certify_half_space(distance, n0=21, n=n, alpha=alpha, bound=bound)
  false = (certificate.prediction == 1) | (certificate.radius > distance)
  # The exact rate: hits are binomial, and class 0 is false where its bound exceeds Phi(d/sigma).
  p = stats.norm.cdf(distance / SIGMA)
  one_sided = alpha if bound == 'one_vs_rest' else alpha / 2
  lower = certification.clopper_pearson_lower(np.arange(n + 1), n, one_sided)
  rate = stats.binom.pmf(np.arange(n + 1), n, p)[lower > p].sum()
  assert rate <= alpha
  low, high = quantiles(rate)
  assert low <= false.sum() <= high
  np.testing.assert_array_equal(certificate.counts.sum(axis=-1), n)
  # 2,000 x 200 votes have the right mean: the noise has the right scale.
  share = certificate.counts[:, 0].mean() / n
  assert share == pytest.approx(p, abs=5 * np.sqrt(p * (1 - p) / (NUM * n)))


def test_at_the_boundary_it_abstains():
  n, alpha = 200, 0.05
  certificate = certify_half_space(0.0, n0=21, n=n, alpha=alpha)
  lower = certification.clopper_pearson_lower(np.arange(n + 1), n, alpha)
  rate = stats.binom.pmf(np.arange(n + 1), n, 0.5)[lower >= 0.5].sum()
  low, high = quantiles(rate)
  assert low <= (certificate.prediction >= 0).sum() <= high

  images = np.zeros((NUM, 1), np.float32)
  predictions = predict(
    keys.root(11), half_space, images, sigma=SIGMA, n=n, alpha=alpha, batch_size=10_000
  )
  p_values = certification.binomial_test(np.arange(n + 1), n)
  rate = stats.binom.pmf(np.arange(n + 1), n, 0.5)[p_values <= alpha].sum()
  for wrong, share in (((predictions >= 0).sum(), 1), ((predictions == 1).sum(), 0.5)):
    low, high = quantiles(rate * share)
    assert low <= wrong <= high


def test_radius_of_a_linear_classifier_is_its_distance():
  random = np.random.default_rng(2)
  weights = random.normal(size=(72, 1)).astype(np.float32)
  logits_fn = jax.tree_util.Partial(
    lambda weights, images: jnp.pad(toy_logits(weights, images - 0.5), ((0, 0), (0, 1))), weights
  )
  # Points at known distances on either side of the plane through the grey image.
  normal = (weights[:, 0] / np.linalg.norm(weights)).reshape(SHAPE)
  distance = np.array([0.1, 0.3, -0.6])
  images = np.float32(0.5) + np.multiply.outer(distance, normal).astype(np.float32)
  certificate = certify(
    keys.root(0), logits_fn, images, sigma=0.5, n0=100, n=20_000, alpha=0.001, batch_size=2000
  )
  np.testing.assert_array_equal(certificate.prediction, [0, 0, 1])
  assert np.all(certificate.radius <= np.abs(distance))
  assert np.all(certificate.radius >= np.abs(distance) - 0.03)
  # On two classes the runner-up bound pays alpha/2 for nothing.
  runner_up = certify(
    keys.root(0), logits_fn, images, sigma=0.5, n0=100, n=20_000, alpha=0.001, batch_size=2000,
    bound='runner_up',
  )
  assert np.all(runner_up.radius < certificate.radius)


def test_batch_equals_a_loop_of_singles():
  settings = {'sigma': 0.5, 'n0': 20, 'n': 53, 'alpha': 0.05, 'batch_size': 16}
  images, logits_fn, key = some_images(), conv_net(), keys.root(5)
  batch = certify(key, logits_fn, images, example_ids=IDS, **settings)
  default = certify(key, logits_fn, images, **settings)
  for i in range(3):
    one = certify(key, logits_fn, images[i:i + 1], example_ids=IDS[i:i + 1], **settings)
    for whole, single in zip(batch, one, strict=True):
      np.testing.assert_array_equal(whole[i:i + 1], single)
    one = certify(key, logits_fn, images[i:i + 1], example_ids=[i], **settings)
    np.testing.assert_array_equal(one.counts, default.counts[i:i + 1])


@pytest.mark.parametrize(('change', 'message'), [
  ({'sigma': 0.0}, 'sigma .*, got 0.0'),
  ({'sigma': float('nan')}, 'sigma .*, got nan'),
  ({'alpha': 1.0}, 'alpha .*, got 1.0'),
  ({'batch_size': 0}, 'batch_size .*, got 0'),
  ({'bound': 'best'}, "bound .*, got 'best'"),
  ({'n0': 0}, 'n0 .*, got 0'),
  ({'n0': 2.5}, 'n0 .*integer.*, got 2.5'),
  ({'n': 100.5}, 'n .*integer.*, got 100.5'),
  ({'n': 3_000_000_000}, 'n .*, got 3000000000'),
])
def test_certify_rejects(change, message):
  settings = {'sigma': 0.5, 'n0': 10, 'n': 20, 'batch_size': 16, **change}
  with pytest.raises(ValueError, match=message):
    certify(keys.root(0), conv_net(), some_images(), **settings)


def test_many_draws_are_asked_for_in_parts(monkeypatch):
  settings = {'sigma': 0.25, 'n0': 7, 'n': 50, 'batch_size': 16}
  images = some_images()
  whole = certify(keys.root(0), toy(), images, **settings)
  assert 0 < whole.counts[:, 0].sum() < 50 * len(images)
  monkeypatch.setattr(stream, '_ROWS', 8 * len(images))
  asked = []

  def spying_count(key, logits_fn, images, example_ids, start, num, **kwargs):
    asked.append((start[0], num[0]))
    assert len(set(start)) == len(set(num)) == 1
    return count(key, logits_fn, images, example_ids, start, num, **kwargs)

  parts = certify(keys.root(0), toy(), images, **settings, count=spying_count)
  assert asked == [(0, 7), *((start, 8) for start in range(0, 48, 8)), (48, 2)]
  jax.tree.map(np.testing.assert_array_equal, parts, whole)


# Prediction.


def predict_counts(counts, n=100, **kwargs):
  fake, _ = canned(counts, counts)
  images = np.zeros((len(counts), 1), np.float32)
  return predict(keys.root(0), constant, images, n=n, count=fake, **kwargs)


def test_predict_tests_the_two_largest_counts():
  counts = [[10, 30, 60], [45, 55, 0], [100, 0, 0], [0, 0, 0], [20, 0, 30], [30, 35, 35]]
  expected = [
    int(np.argmax(row)) if stats.binomtest(max(row), sum(sorted(row)[-2:])).pvalue <= 0.01 else -1
    for row in (counts[0], counts[1], counts[2], counts[5])
  ]
  assert expected == [2, -1, 0, -1]
  predictions = predict_counts(counts, sigma=0.5, alpha=0.01)
  # 100 and 50 draws without a vote: the fourth has no class, the fifth none that beats them.
  np.testing.assert_array_equal(predictions, [2, -1, 0, -1, -1, -1])


def test_predict_finds_the_class():
  images = np.array([[0.9], [0.1]], np.float32)
  predictions = predict(keys.root(0), lambda x: half_space(x - 0.5), images, sigma=0.5, n=400,
                        batch_size=64)
  np.testing.assert_array_equal(predictions, [0, 1])


def test_predict_without_noise_is_the_base_classifier():
  images, logits_fn = some_images(), conv_net(1)
  predictions = predict(keys.root(0), logits_fn, images, sigma=0.0, n=2, batch_size=16)
  np.testing.assert_array_equal(predictions, np.argmax(logits_fn(images), axis=-1))
  nan = predict(keys.root(0), lambda x: logits_fn(x) * jnp.nan, images, sigma=0.0, batch_size=16)
  np.testing.assert_array_equal(nan, -np.ones(len(images)))


def test_predict_takes_what_an_attack_without_a_box_has_left():
  images = np.array([[1.4], [-0.4]], np.float32)
  predictions = predict(keys.root(0), half_space, images, sigma=0.5, n=400, batch_size=64,
                        in_box=False)
  np.testing.assert_array_equal(predictions, [0, 1])


def test_predict_rejects_a_negative_sigma():
  with pytest.raises(ValueError, match='sigma .*, got -1.0'):
    predict_counts([[1, 0]], sigma=-1.0)
