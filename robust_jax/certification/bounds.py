"""Statistics of a certificate: float64 on the host, from integer counts.

float32 is not an option: its Clopper-Pearson bound at k=99,990 of n=100,000 is 5.8e-7 too high,
which is a certificate that the draws do not support.
"""

import numpy as np
from scipy import special

# Phi^-1 is finite on [TINY, 1 - TINY]; 1 - TINY is the largest float64 below 1.
TINY = 2.0**-53


def _check(name, values, allowed, where):
  """Raises ValueError, in one line, naming the first of `values` where `allowed` is False."""
  values, allowed = np.broadcast_arrays(values, allowed)
  if not allowed.all():
    raise ValueError(f'{name}={values[~allowed][0]}; {where} is allowed')


def _counts(k, n):
  k, n = np.asarray(k), np.asarray(n)
  for name, values in (('k', k), ('n', n)):
    if not np.issubdtype(values.dtype, np.integer):
      raise ValueError(f'{name} has dtype {values.dtype}; an integer dtype is allowed')
  _check('n', n, n >= 1, 'n >= 1')
  _check('k', k, (k >= 0) & (k <= n), '0 <= k <= n')
  return k.astype(np.float64), n.astype(np.float64)


def _probability(name, p):
  p = np.asarray(p, np.float64)
  _check(name, p, (p >= 0) & (p <= 1), '[0, 1]')
  return p


def _alpha(alpha):
  alpha = np.asarray(alpha, np.float64)
  _check('alpha', alpha, (alpha > 0) & (alpha < 1), '(0, 1)')
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
  _check('sigma', sigma, (sigma >= 0) & (sigma < np.inf), '[0, inf)')
  score = special.ndtri(np.clip(p_lower, TINY, 1 - TINY))
  if p_upper is not None:
    p_upper = _probability('p_upper', p_upper)
    score = (score - special.ndtri(np.clip(p_upper, TINY, 1 - TINY))) / 2
  return (sigma * np.maximum(score, 0.0))[()]


def binomial_test(k, n):
  """Exact two-sided p-value of 'both outcomes are equally likely'.

  min(1, 2 P(Binomial(n, 1/2) >= max(k, n - k))).

  Args:
    k: hits, integer, broadcast against n.
    n: draws, integer, at least 1.

  Returns:
    float64 p-values, of the broadcast shape.

  Raises:
    ValueError: counts that are not integers with 0 <= k <= n and n >= 1.

  Reference: Hung and Fithian 2019, as used by Cohen, Rosenfeld and Kolter 2019, section 3.2.1.
  """
  k, n = _counts(k, n)
  larger = np.maximum(k, n - k)
  return np.minimum(1.0, 2 * special.betainc(larger, n - larger + 1, 0.5))[()]
