"""Verdicts on attacked images of a smoothed classifier, and what an attack log makes of them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from robust_jax import analysis, certification, keys
from robust_jax.certification import bounds, judge
from robust_jax.certification.judge import beaten, label_votes, verdicts


def sign(images):
  """Class 0 where the first pixel is above 1/2: p_0 = Phi((pixel - 1/2) / sigma)."""
  first = images.reshape(len(images), -1)[:, 0] - 0.5
  return jnp.stack([first, -first], axis=-1)


def canned(counts):
  return lambda *args, **kwargs: np.array(counts)


@pytest.mark.parametrize('alpha', [0.001, 0.05])
def test_two_classes_are_judged_by_the_clopper_pearson_bounds(alpha):
  n = 200
  votes = np.stack([np.arange(n + 1), n - np.arange(n + 1)], axis=-1)
  found = verdicts(votes, n, alpha=alpha, num_classes=2)
  upper = bounds.clopper_pearson_upper(votes[:, 0], n, alpha)
  lower = bounds.clopper_pearson_lower(votes[:, 0], n, alpha)
  np.testing.assert_array_equal(found == 'adversarial', upper < 0.5)
  np.testing.assert_array_equal(found == 'robust', lower > 0.5)
  assert set(found) == {'adversarial', 'undecided', 'robust'}


@pytest.mark.parametrize(('p', 'wrong'), [
    ((0.5, 0.5), 'adversarial'), ((0.5, 0.5), 'robust'), ((0.34, 0.33, 0.33), 'adversarial'),
    ((0.1,) * 10, 'adversarial'), ((0.5, 0.3, 0.2), 'robust')])
def test_false_verdicts_are_as_rare_as_alpha_says(p, wrong):
  # At the boundary: the label is as probable as any, or has just half of the draws.
  counts = np.random.default_rng(0).multinomial(300, p, size=20_000)
  votes = label_votes(counts, np.zeros(len(counts), int))
  false = (verdicts(votes, 300, alpha=0.05, num_classes=len(p)) == wrong).sum()
  assert stats.binom.sf(false - 1, len(counts), 0.05) > 1e-6


def test_of_more_classes_less_than_half_of_the_draws_is_no_adversarial_example():
  counts = np.array([[400, 300, 300], [300, 400, 300], [300, 500, 200], [600, 400, 0]])
  found = judge(keys.root(0), sign, np.zeros((4, 1), np.float32), np.zeros(4, int), sigma=1.,
                n=1000, count=canned(counts))
  # The upper bound of p_0 = 0.4 is far below 1/2, and yet 0 is the class.
  assert bounds.clopper_pearson_upper(400, 1000, 0.001) < 0.5
  assert found.verdict.tolist() == ['undecided', 'adversarial', 'adversarial', 'robust']
  assert found.prediction.tolist() == [0, 1, 1, 0]
  assert found.votes.tolist() == [[400, 300], [300, 400], [300, 500], [600, 400]]


def test_adversarial_implies_the_bound_of_the_label_below_half():
  rng = np.random.default_rng(1)
  counts = rng.multinomial(150, rng.dirichlet(np.ones(4), 3000)[:, None])[:, 0]
  votes = label_votes(counts, np.zeros(len(counts), int))
  found = beaten(votes, alpha=0.01, num_classes=4)
  assert found.any()
  assert (bounds.clopper_pearson_upper(votes[found, 0], 150, 0.01) < 0.5).all()


def test_judged_by_the_draws_of_predict():
  images = np.array([[0.9], [0.6], [0.5], [0.1]], np.float32)
  settings = {'sigma': 0.4, 'n': 400, 'batch_size': 100}
  found = judge(keys.root(0), sign, images, np.array([0, 1, 0, 0]), **settings)
  assert found.verdict.tolist() == ['robust', 'adversarial', 'undecided', 'adversarial']
  np.testing.assert_array_equal(
      found.prediction, certification.predict(keys.root(0), sign, images, **settings))
  p = special.ndtr((images[:, 0] - 0.5) / 0.4)
  np.testing.assert_allclose(found.votes[:, 0] / 400, np.where([0, 1, 0, 0], 1 - p, p), atol=0.1)


def test_without_noise_one_draw_decides_and_nan_is_of_no_class():
  images = np.array([[0.9], [0.1], [0.9]], np.float32)
  labels = np.array([0, 0, 1])
  found = judge(keys.root(0), sign, images, labels, sigma=0., batch_size=3)
  assert found.verdict.tolist() == ['robust', 'adversarial', 'adversarial']
  assert found.votes.sum() == 3
  nan = lambda x: sign(x) * jnp.nan
  for sigma in (0., 1.):
    found = judge(keys.root(0), nan, images, labels, sigma=sigma, n=50, batch_size=3)
    assert set(found.verdict) == {'undecided'} and set(found.prediction) == {-1}


@pytest.mark.parametrize(('change', 'message'), [
    ({'alpha': 0.}, 'alpha .*0'), ({'sigma': -1.}, 'sigma .*-1'),
    ({'labels': np.array([0, 2])}, r'labels must be in \[0, 1\], got 2'),
    ({'labels': np.array([0])}, r'labels .*\(2,\)'),
    ({'images': np.array([[0.5], [np.nan]], np.float32)}, 'images .*nan')])
def test_what_cannot_be_judged_is_one_line(change, message):
  given = {'images': np.full((2, 1), 0.5, np.float32), 'labels': np.array([0, 1]), 'sigma': 1.,
           'n': 10, 'batch_size': 10, **change}
  with pytest.raises(ValueError, match=message):
    judge(keys.root(0), sign, given.pop('images'), given.pop('labels'), **given)


# What a log makes of it.

HEADER = {'header': {'epsilons': [0.5, 1.], 'smoothed': True, 'n': 1000, 'alpha': 0.001,
                     'num_classes': 2}}
# The class, of label 0, without attack and at both radii; and the votes.
LINES = [(0, [0, 0], [[990, 10], [900, 100], [700, 300]]),
         (0, [0, -1], [[800, 200], [600, 400], [500, 500]]),
         (0, [-1, 1], [[800, 200], [520, 480], [445, 555]]),
         (-1, [1, 1], [[500, 500], [300, 700], [100, 900]])]


def write(path, votes=True):
  lines = [{'idx': i, 'label': 0, 'clean': clean, 'adversarial': classes,
            **({'votes': drawn} if votes else {})} for i, (clean, classes, drawn) in
           enumerate(LINES)]
  path.write_text(''.join(json.dumps(line) + '\n' for line in [HEADER, *lines]))
  return analysis.read_attack(path)


@pytest.mark.parametrize('votes', [True, False])
def test_an_abstention_is_wrong_but_no_adversarial_example(votes, tmp_path):
  log = write(tmp_path / 'attack.jsonl', votes)
  assert (log.votes is not None) == votes
  assert analysis.clean_accuracy(log) == 0.75
  assert analysis.clean_accuracy(log, confirmed=True) == 1.
  np.testing.assert_array_equal(analysis.robust_accuracy(log), [0.5, 0.25])
  np.testing.assert_array_equal(analysis.robust_accuracy(log, confirmed=True), [0.75, 0.5])
  _, curve = analysis.attack_curve(log, confirmed=True)
  np.testing.assert_array_equal(curve, [1., 0.75, 0.5])
  assert analysis.verdicts(log)[2].tolist() == ['robust', 'undecided', 'adversarial']


def test_verdicts_that_hold_at_once_have_a_smaller_alpha(tmp_path):
  log = write(tmp_path / 'attack.jsonl')
  shared = analysis.attack_at_once(log)
  assert shared.header['alpha'] == 0.001 / 12
  # 445 of 1000 are enough for the image alone, but not for twelve verdicts at once.
  assert analysis.robust_accuracy(shared, confirmed=True).tolist() == [0.75, 0.75]
  np.testing.assert_array_equal(shared.adversarial, log.adversarial)
  with pytest.raises(ValueError, match='votes'):
    analysis.attack_at_once(log._replace(votes=None))


@pytest.mark.parametrize('votes', [
    [[1, 2]], 3, *([[1, 2], [1, 2], last] for last in ([1, 2.5], [1, -2], [1, 2, 3], [1, 1000]))])
def test_malformed_votes_are_named_by_their_line(votes, tmp_path):
  path = tmp_path / 'attack.jsonl'
  line = {'idx': 0, 'label': 0, 'clean': 0, 'adversarial': [0, 1], 'votes': votes}
  path.write_text(json.dumps(HEADER) + '\n' + json.dumps(line) + '\n')
  with pytest.raises(ValueError, match=r'attack.jsonl:2: votes .* for each epsilon'):
    analysis.read_attack(path)
