"""Exact probabilities of false certificates: dynamic programming over the hits at each look.

  python tests/false_certificates.py

prints two tables. `RadiusGrid` and `Anytime` of `robust_jax.certification` may not exceed alpha, at
any number of draws, any schedule of looks and any grid. Rules with a well-known mistake have to
exceed it somewhere: a check that would pass them too would be none. Nothing here is simulated; the
only error is that of float64 sums (1e-12).
"""

import functools
import itertools
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from robust_jax.certification import Anytime, RadiusGrid, bounds, rules  # noqa: E402

P0S = (0.5, 0.6, 0.9, 0.99, 0.999)
ALPHAS = (0.001, 0.01, 0.05)
SCHEDULES = {
  'every draw': dict(first_look=1, look_growth=1.0),
  'every 100': dict(first_look=100, look_growth=1.0),
  'geometric': dict(first_look=100, look_growth=1.1),
}


class Rule(NamedTuple):
  """A sequential rule for a grid of radii.

  Attributes:
    looks: [num_looks] int, draws at which it looks; the last is the cap.
    num_radii: size of the grid.
    levels: (number of a look, k [m]) -> (certified [m], open [m]): with k hits at that look, how
      many radii from the smallest are rejected, and how many are not given up.
  """

  looks: np.ndarray
  num_radii: int
  levels: Any


class Outcome(NamedTuple):
  """What a rule does at one probability of the class.

  Attributes:
    certified: [num_radii + 1], probability that exactly the first 0, 1, ... radii are certified.
    draws: expected draws.
  """

  certified: np.ndarray
  draws: float


def outcome(rule, p):
  """The distribution of what `rule` certifies where the class has probability p.

  The state is (certified, open, hits): rejections and failures are latched, so `certified` is a
  running maximum and `open` a running minimum. A path ends where certified >= open. Counts with
  less than 1e-30 of probability at either end are left out.
  """
  states = rule.num_radii + 1
  alive, first = np.zeros((states, states, 1)), 0  # hits first, first + 1, ...
  alive[0, rule.num_radii] = 1.0
  certified, draws, before = np.zeros(states), 0.0, 0
  for number, n in enumerate(rule.looks):
    first_step, steps = _binomial(int(n - before), p)
    first, before = first + first_step, n
    k = first + np.arange(alive.shape[-1] + len(steps) - 1)
    now, opened = rule.levels(number, k)
    if n == rule.looks[-1]:
      opened = np.zeros_like(k)
    after = np.zeros((states, states, len(k)))
    for low, high in zip(*np.nonzero(alive.any(axis=-1))):
      mass = np.convolve(alive[low, high], steps)
      after[np.maximum(now, low), np.minimum(opened, high), k - first] += mass
    for low in range(states):
      ended = after[low, :low + 1].sum()
      certified[low] += ended
      draws += n * ended
      after[low, :low + 1] = 0.0
    inside = np.flatnonzero(after.sum(axis=(0, 1)) > 1e-30)
    if not len(inside):
      break
    first, alive = first + inside[0], after[:, :, inside[0]:inside[-1] + 1]
  return Outcome(certified, float(draws))


@functools.cache
def _binomial(n, p):
  """(k, probabilities of k, k + 1, ... hits in n draws), but for ends below 1e-30."""
  pmf = stats.binom.pmf(np.arange(n + 1), n, p)
  inside = np.flatnonzero(pmf > 1e-30)
  return inside[0], pmf[inside[0]:inside[-1] + 1]


def least(accepts, looks):
  """[num_looks] the least k with accepts(k, looks), n + 1 where no k <= n has; monotone in k."""
  low, high = np.zeros_like(looks), looks + 1
  while (low < high).any():
    middle = np.minimum((low + high) // 2, looks)
    accepted = accepts(middle, looks)
    low, high = (np.where(accepted | (low >= high), low, middle + 1),
                 np.where(accepted & (low < high), middle, high))
  return low


def plan_rule(plan, heed_failures=True):
  """`RadiusGrid.look` as a Rule.

  It is asked for a fresh state, since what an earlier look decided is latched.
  """
  fresh = plan.start(len(plan.looks))

  def thresholds(answer):
    return np.stack([
      least(lambda k, n, r=r: answer(plan.look(fresh, k, n))[:, r], plan.looks)
      for r in range(len(plan.grid))
    ], axis=-1)

  rejects = thresholds(lambda state: state.rejected)
  goes_on = thresholds(lambda state: ~state.failed)
  if (np.diff(rejects, axis=-1) < 0).any():
    raise ValueError('a radius is rejected at a count that does not reject a smaller one')

  def levels(number, k):
    k = k[:, None]
    opened = (k >= goes_on[number]).sum(axis=-1) if heed_failures else len(plan.grid)
    return (k >= rejects[number]).sum(axis=-1), np.broadcast_to(opened, len(k))

  return Rule(plan.looks, len(plan.grid), levels)


def single(looks, rejects, gives_up=None):
  """A Rule for one radius from rejects(k [m], n) -> [m] bool, and gives_up alike."""
  def levels(number, k):
    n = looks[number]
    opened = np.ones_like(k) if gives_up is None else 1 - gives_up(k, n)
    return rejects(k, n).astype(int), opened
  return Rule(looks, 1, levels)


def false_certificate(plan):
  """[num_radii] probability of certifying radius r or more where p = Phi(r / sigma).

  Failures are not heeded: the error probability may not depend on stopping.
  """
  rule = plan_rule(plan, heed_failures=False)
  return np.array([outcome(rule, special.ndtr(score)).certified[level + 1:].sum()
                   for level, score in enumerate(plan.scores)])


def false_anytime(plan, p):
  """Probability that p_lower of an anytime plan is above p at any look, if p is the truth."""
  start = plan.start(len(plan.looks))
  too_high = least(lambda k, n: plan.look(start, k, n).p_lower > p, plan.looks)
  levels = lambda number, k: ((k >= too_high[number]).astype(int), np.ones_like(k))
  return outcome(Rule(plan.looks, 1, levels), p).certified[1]


def plan_at(p0, n, alpha, **fields):
  """The plan whose only radii are 0 and that of p0, sigma 1."""
  return RadiusGrid(sigma=1.0, radii=(special.ndtri(p0),), n=n, alpha=alpha, **fields)


# Rules with a mistake, at alpha = 0.001: functions () -> (p, Rule) where p is not above p0.

ALPHA = 0.001
P0 = 0.9


def clopper_pearson(k, n):
  return bounds.clopper_pearson_lower(k, n, ALPHA) >= P0


def e_value(k, n, alpha=ALPHA):
  return bounds.log_e_value(k, n, special.ndtri(P0)) >= -np.log(alpha)


def peeking():
  looks = rules.look_schedule(6000, first_look=100, look_growth=1.0)
  return P0, single(looks, clopper_pearson)


def second_chance():
  return P0, single(np.array([3000, 6000]), clopper_pearson)


def alpha_twice():
  looks = rules.look_schedule(1000, first_look=1, look_growth=1.0)
  rejects = lambda k, n: e_value(k, n) | (n == looks[-1]) & clopper_pearson(k, n)
  return P0, single(looks, rejects)


def whole_mixture():
  """A martingale at p0, but not below."""
  def rejects(k, n):
    log_ratio = (special.betaln(k + 0.5, n - k + 0.5) - np.log(np.pi)
                 - k * np.log(P0) - (n - k) * np.log(1 - P0))
    return log_ratio >= -np.log(ALPHA)
  looks = rules.look_schedule(1000, first_look=10, look_growth=1.0)
  return 0.8, single(looks, rejects)


def best_ratio():
  """q fitted to the draws that it is tested on."""
  def rejects(k, n):
    q = np.maximum(k / n, P0)
    return special.xlogy(k, q / P0) + special.xlogy(n - k, (1 - q) / (1 - P0)) >= -np.log(ALPHA)
  looks = rules.look_schedule(1000, first_look=1, look_growth=1.0)
  return P0, single(looks, rejects)


def binding_futility(heed=False):
  """A threshold that is right if drawing ends for good where the futility e-value reaches 2."""
  looks = rules.look_schedule(1000, first_look=1, look_growth=1.0)
  futile = lambda k, n: bounds.log_e_value(n - k, n, -special.ndtri(P0)) >= np.log(2)
  rejects = lambda k, n: e_value(k, n, 1.3297 * ALPHA)
  return P0, single(looks, rejects, futile if heed else None)


def float32_bound():
  """Phi^-1 and all else exact: rounding the bound and its arguments is enough."""
  bound = lambda k, n: special.betaincinv(
    np.float32(k), np.float32(n) - np.float32(k) + np.float32(1), np.float32(ALPHA))
  p0 = bound(99_990, 100_000)
  return float(p0), single(np.array([100_000]), lambda k, n: bound(np.maximum(k, 1), n) >= p0)


MISTAKES = {
  'Clopper-Pearson at alpha, at every look': peeking,
  'Clopper-Pearson at alpha, at half the cap and at the cap': second_chance,
  'alpha not split: e-value and cap at alpha each': alpha_twice,
  'mixture over all q, not q > p0 (p below p0)': whole_mixture,
  'likelihood ratio at q = k / n': best_ratio,
  'threshold for binding futility, futility not heeded': binding_futility,
  'Clopper-Pearson in float32, one look': float32_bound,
}


def sound_rows():
  """Yields (what, n, alpha, [false-certificate probability at each of P0S, NaN beyond reach])."""
  for (schedule, fields), alpha in itertools.product(SCHEDULES.items(), ALPHAS):
    yield f'one radius, {schedule}', 6000, alpha, [
      false_certificate(plan_at(p0, 6000, alpha, **fields))[-1]
      if alpha > 0.001 or p0 < 0.999 else np.nan for p0 in P0S]
  for alpha in ALPHAS:
    grid = RadiusGrid(sigma=1.0, radii=special.ndtri(P0S), n=10_000, alpha=alpha)
    yield 'all of them, geometric', 10_000, alpha, false_certificate(grid)
  for (schedule, fields), n in zip(SCHEDULES.items(), (1000, 6000, 6000)):
    for alpha in ALPHAS:
      plan = Anytime(sigma=1.0, n=n, alpha=alpha, **fields)
      yield f'anytime, {schedule}', n, alpha, [false_anytime(plan, p0) for p0 in P0S]


def main():
  def verdict(largest):
    return 'exceeds alpha' if largest > 1 else 'passes'

  print('P(false certificate) / alpha where p = p0')
  print(f'{"rule":26}{"n":>7}{"alpha":>7}' + ''.join(f'{f"p0={p0:g}":>10}' for p0 in P0S))
  for what, n, alpha, row in sound_rows():
    ratios = np.array(row) / alpha
    cells = ''.join('         -' if np.isnan(ratio) else f'{ratio:10.4f}' for ratio in ratios)
    print(f'{what:26}{n:7,}{alpha:7g}{cells}  {verdict(np.nanmax(ratios))}', flush=True)
  print('\n-: a radius that n draws cannot reach, which the plan refuses')

  print(f'\nMistakes, alpha={ALPHA:g}\n{"rule":58}{"n":>8}{"p":>10}{"P / alpha":>11}')
  for name, mistake in MISTAKES.items():
    p, rule = mistake()
    ratio = outcome(rule, p).certified[1] / ALPHA
    print(f'{name:58}{rule.looks[-1]:8,}{p:10.6f}{ratio:11.4f}  {verdict(ratio)}', flush=True)

  plans = [RadiusGrid(sigma=0.5, radii=(0.5,), indifference=indifference)
           for indifference in (0.0, 0.05)]
  print('\nRadius 0.5 at sigma 0.5 (p0 = 0.8413), n=100,000, alpha=0.001: P(certified), mean draws')
  print(f'{"p":>8}{"fixed n":>10}{"indifference 0":>22}{"indifference 0.05":>22}')
  planned = [plan_rule(plan) for plan in plans]
  needed = least(lambda k, n: bounds.clopper_pearson_lower(k, n, 0.001) >= special.ndtr(1.0),
                 np.array([100_000]))
  for p in (0.5, 0.8, 0.83, 0.838, 0.8413, 0.843, 0.845, 0.847, 0.85, 0.86, 0.9, 0.95, 0.99):
    cells = [outcome(rule, p) for rule in planned]
    print(f'{p:8g}{stats.binom.sf(needed[0] - 1, 100_000, p):10.4f}' + ''.join(
      f'{cell.certified[-1]:12.4f}{cell.draws:10,.0f}' for cell in cells), flush=True)


if __name__ == '__main__':
  main()
