"""analysis: figures from logs against brute force and published tables; the table writers."""

import csv
import json
import math

import numpy as np
import pytest
from scipy import stats

from robust_jax import analysis
from robust_jax.certification import log
from robust_jax.errors import UserError


def make_log(radius, predict, label):
  radius, predict, label = np.asarray(radius, float), np.asarray(predict), np.asarray(label)
  return log.Log(np.arange(len(radius)), label, predict, radius, predict == label,
                 np.ones(len(radius)), {}, [])


EMPTY = make_log([], [], [])


def test_certified_figures_against_a_loop():
  rng = np.random.default_rng(0)
  one = make_log(rng.choice([0, 0.25, 0.5, 0.7, 1.0], 200), rng.integers(-1, 3, 200),
                 rng.integers(0, 3, 200))
  radii = [0.0, 0.25, 0.2500001, 0.5, 1.0, 1.1]
  expected = [sum(c and r >= radius for c, r in zip(one.correct, one.radius)) / 200
              for radius in radii]
  np.testing.assert_allclose(analysis.certified_accuracy(one, radii), expected, rtol=1e-12)
  assert analysis.certified_accuracy(one, 0.5) == expected[3]
  assert analysis.average_certified_radius(one) == pytest.approx(
      sum(r for c, r in zip(one.correct, one.radius) if c) / 200)
  assert analysis.abstention_rate(one) == sum(p == -1 for p in one.predict) / 200
  # ACR is the area under the curve.
  fine = np.linspace(0, 1.2, 120_001)
  area = np.trapezoid(analysis.certified_accuracy(one, fine), fine)
  assert analysis.average_certified_radius(one) == pytest.approx(area, abs=1e-4)


def test_beyond_a_grid_nothing_is_known():
  grid = make_log([0., 0.25, 0.5, 0.5], [1, 1, 1, 0], [1, 1, 1, 1])._replace(
      settings={'radii': [0.5, 0.25]})
  np.testing.assert_array_equal(analysis.decided_radii(grid), [0.25, 0.5])
  np.testing.assert_array_equal(
      analysis.certified_accuracy(grid, [[0., 0.25], [0.4, 0.5], [0.5001, 1.]]),
      [[0.75, 0.5], [0.25, 0.25], [np.nan, np.nan]])
  assert analysis.certified_images(grid, 0.25).tolist() == [False, True, True, False]
  assert analysis.certified_images(grid, 0.51) is None
  # Radii that a caller has computed, a little beside those of the grid.
  fine = make_log([0.7, 64 / 255], [1, 1], [1, 1])._replace(settings={'radii': [64 / 255, 0.7]})
  np.testing.assert_array_equal(
      analysis.certified_accuracy(fine, 0.1 * np.arange(9))[[2, 7, 8]], [1., 0.5, np.nan])
  assert analysis.certified_images(fine, 0.1 * 7).tolist() == [True, False]
  assert analysis.is_decided(fine, [0.1 * 7, 64 / 255, 0.25, 0.8]).tolist() == [
      True, True, False, False]
  assert analysis.is_decided(EMPTY, [3.]).all() and analysis.decided_radii(EMPTY) is None
  free = make_log([0.1], [1], [1])
  np.testing.assert_array_equal(analysis.envelope([grid, free], [0.1, 1.]), [1., 0.])
  np.testing.assert_array_equal(analysis.envelope([grid], [0.5, 1.]), [0.25, np.nan])


def test_an_empty_log_is_unknown_not_zero():
  assert np.isnan(analysis.certified_accuracy(EMPTY, [0.0, 1.0])).all()
  assert np.isnan(analysis.average_certified_radius(EMPTY))
  assert np.isnan(analysis.abstention_rate(EMPTY))
  assert np.isnan(analysis.envelope([EMPTY], [0.0, 1.0])).all()
  assert analysis.envelope([], [0.0, 1.0]).shape == (2,)
  low, high = analysis.accuracy_interval([np.nan], 0)
  assert (low[0], high[0]) == (0, 1)


@pytest.mark.parametrize('total', [1, 7, 500])
def test_intervals_are_clopper_pearson(total):
  hits = np.arange(total + 1)
  low, high = analysis.accuracy_interval(hits / total, total, confidence=0.9)
  for k in (0, total // 3, total):
    exact = stats.binomtest(k, total).proportion_ci(0.9, method='exact')
    assert (low[k], high[k]) == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_p_a_is_what_a_radius_stands_for():
  one = make_log([0.5, 0.5, 0., 1.], [1, 2, 1, 1], [1, 1, 1, 1])
  np.testing.assert_allclose(analysis.certified_probability(one, 0.5),
                             [stats.norm.cdf(1), 0, 0.5, stats.norm.cdf(2)])
  known = one._replace(settings={'sigma': 0.25, 'n': 100, 'alpha': 0.01})
  assert analysis.certified_probability(known)[0] == pytest.approx(stats.norm.cdf(2))
  assert analysis.largest_radius(known) == pytest.approx(0.25 * stats.norm.ppf(0.01 ** 0.01))
  assert analysis.largest_radius(one) is None
  assert analysis.largest_radius(known._replace(
      settings=known.settings | {'name': 'sequential'})) is None


def test_envelope_takes_the_best_model_at_each_radius():
  steep = make_log([0.4, 0.4, 0.4], [1, 1, 1], [1, 1, 1])
  flat = make_log([0.0, 0.1, 2.0], [0, 1, 1], [1, 1, 1])
  np.testing.assert_allclose(analysis.envelope([steep, EMPTY, flat], [0.3, 1.0, 3.0]),
                             [1, 1 / 3, 0])


def test_means_and_differences_are_those_of_scipy():
  rng = np.random.default_rng(0)
  first, second = rng.normal(0.8, 0.1, 6), rng.normal(0.7, 0.3, 4)
  for confidence in (0.9, 0.95):
    mean, half = analysis.mean_interval(first, confidence=confidence)
    interval = stats.t.interval(confidence, 5, loc=first.mean(), scale=stats.sem(first))
    assert (mean - half, mean + half) == pytest.approx(interval)
    difference, half = analysis.welch_difference(first, second, confidence=confidence)
    interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(confidence)
    assert (difference - half, difference + half) == pytest.approx((interval.low, interval.high))
    radii, others = rng.gamma(9, size=(2, 40))
    interval = stats.ttest_rel(radii, others).confidence_interval(confidence)
    assert analysis.paired_difference(radii, others, confidence=confidence) == pytest.approx(
        (np.mean(radii - others), interval.low, interval.high))


def of_discordant(only_first, only_second, count):
  """The paired difference of networks that are right alone on so many of `count` images."""
  first = np.arange(count) < only_first
  second = (np.arange(count) >= only_first) & (np.arange(count) < only_first + only_second)
  both = np.arange(count) >= count - 5
  return analysis.paired_difference(first | both, second | both)


@pytest.mark.parametrize('only_first, only_second', [(0, 0), (1, 0), (0, 4), (7, 5), (90, 60)])
def test_paired_shares_by_square_and_add(only_first, only_second):
  count, ends = 300, []
  for hits in (only_first, only_second):
    exact = stats.binomtest(hits, count).proportion_ci(0.95, method='exact')
    ends.append((hits / count, exact.low, exact.high))
  (p, low_p, high_p), (q, low_q, high_q) = ends
  correlation = -math.sqrt(p * q / (1 - p) / (1 - q))
  distance = lambda a, b: math.sqrt(a * a + b * b - 2 * correlation * a * b)
  assert of_discordant(only_first, only_second, count) == pytest.approx(
      (p - q, p - q - distance(p - low_p, high_q - q), p - q + distance(high_p - p, q - low_q)))


@pytest.mark.parametrize('count, p, q', [
    (20, 0.3, 0.2), (50, 0.02, 0.), (300, 0.003, 0.003), (300, 0.006, 0.), (300, 0.0001, 0.),
    (300, 0.03, 0.02), (1000, 0.02, 0.001)])
def test_paired_shares_are_covered_as_often_as_said(count, p, q):
  """The exact probability of covering p - q, over all numbers of images on which two differ."""
  most = int(stats.binom.isf(1e-6, count, p + q)) + 1
  covered = total = 0.
  for only_first in range(most + 1):
    for only_second in range(min(most, count) - only_first + 1):
      probability = stats.multinomial.pmf(
          [only_first, only_second, count - only_first - only_second], count, [p, q, 1 - p - q])
      if probability > 1e-7:
        _, low, high = of_discordant(only_first, only_second, count)
        total += probability
        covered += probability * (low <= p - q <= high)
  assert total > 0.999 and covered >= 0.95


def test_few_images_with_other_radii_are_covered_as_often_as_said():
  rng = np.random.default_rng(0)
  hits, radius = 0, rng.uniform(0.5, 1.5, 300)
  for _ in range(300):  # One image in fifty gains a step of the grid of radii, or loses one.
    change = 0.25 * rng.choice([1, -1, 0], 300, p=[0.015, 0.005, 0.98])
    _, low, high = analysis.paired_difference(radius + change, radius)
    hits += low <= 0.25 * 0.01 <= high
  assert hits / 300 >= 0.95
  _, low, high = analysis.paired_difference(radius, radius)
  assert low == -high and 0.01 < high < 0.03


def test_one_value_has_no_interval():
  mean, half = analysis.mean_interval([0.25])
  assert mean == 0.25 and np.isnan(half)
  assert np.isnan(analysis.mean_interval([])).all()
  difference, half = analysis.welch_difference([3.0], [1.0, 2.0])
  assert difference == 1.5 and np.isnan(half)
  assert np.isnan(analysis.welch_difference([], [1.0])).all()
  assert analysis.welch_difference([1.0, 1.0], [0.5, 0.5]) == (0.5, 0.0)
  with pytest.raises(ValueError, match='same images'):
    analysis.paired_difference([1.0], [1.0, 2.0])


def test_the_mean_interval_holds_as_often_as_it_says():
  rng = np.random.default_rng(0)
  hits = 0
  for _ in range(2000):
    mean, half = analysis.mean_interval(rng.normal(size=3))
    hits += abs(mean) <= half
  assert abs(hits / 2000 - 0.95) < 0.02


def test_logs_are_cut_to_the_images_that_all_have(tmp_path):
  one = make_log([0.1, 0.2, 0.3, 0.4], [0, 1, 2, 3], [0, 1, 2, 2])._replace(
      idx=np.array([9, 5, 7, 1]))
  other = make_log([1.0, 2.0, 3.0], [0, 0, 0], [0, 0, 0])._replace(idx=np.array([1, 5, 2]))
  idx = analysis.common_images([one, other])
  assert idx.tolist() == [1, 5]
  cut = analysis.on_images(one, idx)
  assert (cut.idx.tolist(), cut.radius.tolist(), cut.correct.tolist()) == (
      [1, 5], [0.4, 0.2], [False, True])
  attack = analysis.read_attack(write_attack(tmp_path / 'attack.jsonl', ATTACK))
  cut = analysis.on_images(attack, [6, 0])
  assert cut.idx.tolist() == [6, 0] and cut.adversarial.tolist() == [[-1, 1, 1], [1, 1, 1]]
  assert cut.epsilons.tolist() == attack.epsilons.tolist() and cut.header == attack.header
  assert len(analysis.common_images([])) == 0


ATTACK = [
    {'header': {'attack': {'name': 'pgd', 'norm': 'l2'}, 'epsilons': [0.5, 0.25, 1.0]}},
    {'idx': 0, 'label': 1, 'clean': 1, 'adversarial': [1, 1, 1]},
    {'idx': 2, 'label': 1, 'clean': 1, 'adversarial': [1, 3, 1]},  # broken at .25, hence at all
    {'idx': 4, 'label': 1, 'clean': 0, 'adversarial': [1, 1, 1]},  # wrong without attack
    {'idx': 6, 'label': 1, 'clean': 1, 'adversarial': [-1, 1, 1]},  # abstains at .5
]


def write_attack(path, rows, end='\n'):
  path.write_text('\n'.join(json.dumps(row) for row in rows) + end)
  return path


def test_robust_accuracy_counts_every_smaller_epsilon(tmp_path):
  attack = analysis.read_attack(write_attack(tmp_path / 'attack.jsonl', ATTACK))
  np.testing.assert_array_equal(attack.epsilons, [0.5, 0.25, 1.0])
  np.testing.assert_allclose(analysis.robust_accuracy(attack), [1 / 4, 2 / 4, 1 / 4])
  assert analysis.clean_accuracy(attack) == 3 / 4
  assert attack.header['attack']['name'] == 'pgd'


def test_an_attack_log_says_where_a_gradient_was_not_finite(tmp_path):
  old = analysis.read_attack(write_attack(tmp_path / 'attack.jsonl', ATTACK))
  assert old.undefined.shape == (4, 3) and analysis.undefined_images(old) == 0
  rows = [*ATTACK[:2], {**ATTACK[2], 'undefined': [False, True, False]}, *ATTACK[3:]]
  attack = analysis.read_attack(write_attack(tmp_path / 'attack.jsonl', rows))
  assert attack.undefined.sum() == 1 and analysis.undefined_images(attack) == 1
  cut = analysis.on_images(attack, [6, 2])
  assert cut.undefined.tolist() == [[False] * 3, [False, True, False]]
  assert analysis.robust_accuracy(attack).tolist() == analysis.robust_accuracy(old).tolist()


def test_attack_log_torn_empty_and_malformed(tmp_path):
  path = tmp_path / 'attack.jsonl'
  write_attack(path, ATTACK)
  path.write_text(path.read_text()[:-9])
  assert len(analysis.read_attack(path).idx) == 3
  path.write_text('')
  empty = analysis.read_attack(path)
  assert analysis.robust_accuracy(empty).shape == (0,) and np.isnan(analysis.clean_accuracy(empty))
  attack = analysis.read_attack(write_attack(path, ATTACK[:1]))
  assert np.isnan(analysis.robust_accuracy(attack)).all()
  for bad in ({'idx': 1}, {**ATTACK[1], 'adversarial': [1]}, {**ATTACK[1], 'clean': 'cat'}, [],
              {**ATTACK[1], 'undefined': [True]}):
    write_attack(path, [*ATTACK, bad])
    with pytest.raises(UserError, match='attack.jsonl:6: '):
      analysis.read_attack(path)
  write_attack(path, [*ATTACK, ATTACK[1]])
  with pytest.raises(UserError, match='more than once'):
    analysis.read_attack(path)
  with pytest.raises(UserError, match='absent'):
    analysis.read_attack(tmp_path / 'absent')


TABLE = analysis.Table(['name', 'ℓ₂ 100%', 'n'], [
    ['a|b, "c"', '57.0', 5], ['under_score & more', 0.123456789, None]])


def test_csv_reads_back():
  rows = list(csv.reader(analysis.to_csv(TABLE).splitlines()))
  assert rows == [['name', 'ℓ₂ 100%', 'n'], ['a|b, "c"', '57.0', '5'],
                  ['under_score & more', '0.123457', '']]


def test_markdown_is_aligned_and_escaped():
  assert analysis.to_markdown(TABLE) == (
      '| name               |  ℓ₂ 100% |   n |\n'
      '| ------------------ | -------: | --: |\n'
      '| a\\|b, "c"          |     57.0 |   5 |\n'
      '| under_score & more | 0.123457 |     |\n')


def test_text_for_a_terminal():
  table = analysis.Table(['name', 'value'], [['a', '9.5%'], ['long name', '10.0%']])
  assert analysis.to_text(table) == (
      'name       value\n'
      '---------  -----\n'
      'a           9.5%\n'
      'long name  10.0%\n')
  assert analysis.to_text(analysis.Table(['a'], [])) == 'a\n-\n'


def test_the_best_is_set_off_in_every_format():
  table = analysis.Table(['name', 'r=1'], [['a', analysis.Best('9.5 ± 0.1')], ['b', '10.0 (n=1)']])
  assert analysis.to_csv(table).splitlines()[1:] == ['a,9.5 ± 0.1', 'b,10.0 (n=1)']
  assert '| **9.5 ± 0.1** |' in analysis.to_markdown(table)
  assert r'a & \textbf{9.5 $\pm$ 0.1} \\' in analysis.to_latex(table)
  assert analysis.to_text(table) == (
      'name         r=1\n'
      '----  -----------\n'
      'a      9.5 ± 0.1*\n'
      'b     10.0 (n=1)\n'
      '\n'
      '* the best of its column\n')


def test_text_of_a_limited_width_repeats_the_first_column():
  table = analysis.Table(['name', 'one', 'two', 'three'], [['a', '1', '2', '3']])
  assert analysis.to_text(table, 15) == (
      'name  one  two\n----  ---  ---\na       1    2\n\n'
      'name  three\n----  -----\na         3\n')
  assert analysis.to_text(table, 21) == analysis.to_text(table)
  assert analysis.to_text(table, 1).count('name') == 3


def test_latex_escapes_and_aligns():
  text = analysis.to_latex(TABLE)
  assert text.startswith('\\begin{tabular}{lrr}\n\\toprule\n')
  assert r'$\ell$$_2$ 100\%' in text
  assert r'under\_score \& more & 0.123457 & ' in text
  assert text.count(r'\\') == 3 and text.endswith('\\bottomrule\n\\end{tabular}\n')
