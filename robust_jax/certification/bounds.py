"""Statistics of a certificate: float64 on the host, from integer counts.

float32 is not an option: its Clopper-Pearson bound at k=99,990 of n=100,000 is 5.8e-7 too high,
which is a certificate that the draws do not support.
"""

import numpy as np
from scipy import special

from robust_jax import inputs

# Phi^-1 is finite on [TINY, 1 - TINY]; 1 - TINY is the largest float64 below 1.
TINY = 2.0**-53


def _counts(k, n):
  k, n = np.asarray(k), np.asarray(n)
  for name, values in (('k', k), ('n', n)):
    if not np.issubdtype(values.dtype, np.integer):
      raise ValueError(f'{name} must be integers, got dtype {values.dtype}')
  inputs.check('n', n, n >= 1, 'at least 1')
  inputs.check('k', k, (k >= 0) & (k <= n), 'in 0, ..., n')
  return k.astype(np.float64), n.astype(np.float64)


def _probability(name, p):
  p = np.asarray(p, np.float64)
  inputs.check(name, p, (p >= 0) & (p <= 1), 'in [0, 1]')
  return p


def _alpha(alpha):
  alpha = np.asarray(alpha, np.float64)
  inputs.check('alpha', alpha, (alpha > 0) & (alpha < 1), 'in (0, 1)')
  return alpha


def clopper_pearson_lower(k, n, alpha):
  """Exact one-sided lower confidence bound of a binomial proportion.

  The p with P(Binomial(n, p) >= k) = alpha: the alpha-quantile of Beta(k, n - k + 1). Whatever
  the true proportion, the bound lies above it with probability at most alpha. 0 for k = 0,
  alpha**(1/n) for k = n.

  Args:
    k: hits, integer, broadcast against n.
    n: draws, integer, at least 1.
    alpha: probability of error, in (0, 1).

  Returns:
    float64, of the broadcast shape.

  Raises:
    ValueError: counts that are not integers with 0 <= k <= n and n >= 1; alpha outside (0, 1).

  Reference: Clopper and Pearson 1934, Biometrika 26.
  """
  k, n = _counts(k, n)
  alpha = _alpha(alpha)
  # max: the quantile is evaluated at k = 0 as well, where Beta(0, .) does not exist.
  return np.where(k == 0, 0.0, special.betaincinv(np.maximum(k, 1), n - k + 1, alpha))[()]


def clopper_pearson_upper(k, n, alpha):
  """Exact one-sided upper confidence bound of a binomial proportion.

  The p with P(Binomial(n, p) <= k) = alpha: the (1 - alpha)-quantile of Beta(k + 1, n - k).
  1 for k = n, 1 - alpha**(1/n) for k = 0. Arguments, result and errors as in
  `clopper_pearson_lower`.

  Reference: Clopper and Pearson 1934, Biometrika 26.
  """
  k, n = _counts(k, n)
  alpha = _alpha(alpha)
  # The complemented inverse takes alpha itself; 1 - alpha would round a small one away.
  return np.where(k == n, 1.0, special.betainccinv(k + 1, np.maximum(n - k, 1), alpha))[()]


def certified_radius(p_lower, sigma, p_upper=None):
  """l2 radius within which the smoothed classifier keeps its class.

  sigma * Phi^-1(p_lower), or, with an upper bound of every other class,
  (sigma / 2) * (Phi^-1(p_lower) - Phi^-1(p_upper)); 0 where that is not positive. The two agree
  at p_upper = 1 - p_lower. Probabilities within 2**-53 of 0 or 1 count as 2**-53 away from it:
  the radius stays finite (at most 8.21 sigma) and is never raised.

  Args:
    p_lower: lower bound of the probability of the class, in [0, 1].
    sigma: standard deviation of the noise, pixel units, not negative.
    p_upper: upper bound of the probability of each other class, in [0, 1].

  Returns:
    float64 radius in pixel units, of the broadcast shape.

  Raises:
    ValueError: a probability outside [0, 1], or a negative or infinite sigma.

  Reference: Cohen, Rosenfeld and Kolter 2019, theorem 1 and section 3.2.2.
  """
  p_lower = _probability('p_lower', p_lower)
  sigma = np.asarray(sigma, np.float64)
  inputs.check('sigma', sigma, (sigma >= 0) & (sigma < np.inf), 'in [0, inf)')
  score = special.ndtri(np.clip(p_lower, TINY, 1 - TINY))
  if p_upper is not None:
    p_upper = _probability('p_upper', p_upper)
    score = (score - special.ndtri(np.clip(p_upper, TINY, 1 - TINY))) / 2
  return (sigma * np.maximum(score, 0.0))[()]


def binomial_test(k, n):
  """Exact two-sided p-value of 'both outcomes are equally likely'.

  min(1, 2 P(Binomial(n, 1/2) >= max(k, n - k))). Arguments, result and errors as in
  `clopper_pearson_lower`.

  Reference: Hung and Fithian 2019, as used by Cohen, Rosenfeld and Kolter 2019, section 3.2.1.
  """
  k, n = _counts(k, n)
  larger = np.maximum(k, n - k)
  return np.minimum(1.0, 2 * special.betainc(larger, n - larger + 1, 0.5))[()]


def _rounded_down(*terms):
  """The sum of float64 terms, each good to a few units in its last place, less that error."""
  size = 1 + sum(np.abs(term) for term in terms)
  return sum(terms) - 16 * np.finfo(np.float64).eps * size


def _log_mixture(k, misses):
  """The terms of log B(k + 1/2, misses + 1/2), B the Beta function."""
  return (special.gammaln(k + 0.5), special.gammaln(misses + 0.5),
          -special.gammaln(k + misses + 1))


def log_e_value(k, n, score):
  """Logarithm of the evidence, valid at every n, that a probability is above p0 = Phi(score).

  The likelihood ratio of q to p0, averaged over the Beta(1/2, 1/2) prior restricted to q > p0:

    E_n = B(k + 1/2, n - k + 1/2) (1 - I_p0(k + 1/2, n - k + 1/2))
          / (B(1/2, 1/2) (1 - I_p0(1/2, 1/2)) p0^k (1 - p0)^(n - k)).

  For every q > p0 and every p <= p0, p q/p0 + (1 - p) (1 - q)/(1 - p0) <= 1, so that E is a
  supermartingale from E_0 = 1 whatever the true p <= p0 is, and by Ville's inequality
  P(E_n >= 1/alpha for any n) <= alpha: 'reject p <= p0 as soon as E_n >= 1/alpha' may be looked
  at after every draw. Without the restriction that holds at p = p0 alone.

  Hits and misses exchanged, log_e_value(n - k, n, -score) is the evidence that p < p0, from the
  prior restricted to q < p0.

  The score, and not p0, keeps the digits of 1 - p0; a radius r has score r / sigma. The result is
  lowered by its rounding error (1e-8 at n = 100,000) and is -inf, E = 0, where
  1 - I_p0(k + 1/2, n - k + 1/2) underflows, k/n far below p0 and E < 1: it never exceeds the exact
  value.

  Args:
    k: hits, integer, broadcast against n and score.
    n: draws, integer, at least 1.
    score: Phi^-1(p0), in [-37, 37].

  Returns:
    float64, of the broadcast shape.

  Raises:
    ValueError: counts that are not integers with 0 <= k <= n and n >= 1; a score outside [-37, 37],
      where Phi leaves the range of float64.

  Reference: Ville 1939; Robbins 1970, Ann. Math. Stat. 41 (mixtures); Ramdas, Grunwald, Vovk and
    Shafer 2023, Statistical Science 38 (e-processes of composite hypotheses).
  """
  k, n = _counts(k, n)
  score = np.asarray(score, np.float64)
  inputs.check('score', score, np.abs(score) <= 37, 'in [-37, 37]')
  misses = n - k
  above = special.ndtr(-score)
  with np.errstate(divide='ignore'):
    log_tail = np.log(special.betainc(misses + 0.5, k + 0.5, above))
  # B(1/2, 1/2) (1 - I_p0(1/2, 1/2)) = 2 arcsin(sqrt(1 - p0)).
  return _rounded_down(
    *_log_mixture(k, misses), log_tail, -np.log(2 * np.arcsin(np.sqrt(above))),
    -k * special.log_ndtr(score), -misses * special.log_ndtr(-score),
  )[()]


def confidence_sequence_lower(k, n, alpha):
  """Lower confidence bound of a probability that holds at every n at once.

  inf{p : B(k + 1/2, n - k + 1/2) / (B(1/2, 1/2) p^k (1 - p)^(n - k)) < 1/alpha}, k hits in n draws.
  At the true p that ratio is a martingale from 1, so by Ville's inequality the bound lies above p
  at any n with probability at most alpha; the largest bound so far is therefore a bound too.
  0 for k = 0. 1 - confidence_sequence_lower(n - k, n, alpha) is the upper end, and both ends hold
  together at alpha.

  The root is bracketed in log space and its lower side returned: never above the exact bound.
  Arguments, result and errors as in `clopper_pearson_lower`; alpha is the probability that the
  bound at any n is above the true probability.

  Reference: Robbins 1970, Ann. Math. Stat. 41; Ville 1939.
  """
  k, n, alpha = np.broadcast_arrays(*_counts(k, n), _alpha(alpha))
  misses = n - k
  terms = (*_log_mixture(k, misses), -np.log(np.pi), np.log(alpha))
  # The ratio falls from infinity at p = 0 to at most 1 at p = k / n.
  low, high = np.zeros(k.shape), k / n
  for _ in range(60):
    middle = (low + high) / 2
    excluded = _rounded_down(
      *terms, -special.xlogy(k, middle), -special.xlog1py(misses, -middle)
    ) >= 0
    low, high = np.where(excluded, middle, low), np.where(excluded, high, middle)
  return low[()]
