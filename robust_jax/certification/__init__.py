"""Certification by randomized smoothing: which class, with which radius, at which confidence.

`CERTIFIERS` maps the names that a config uses to functions
(key, logits_fn, images, *, sigma, ..., example_ids=None, count=count) -> types.Certificate.
"""

from robust_jax.certification.bounds import (
  binomial_test,
  certified_radius,
  clopper_pearson_lower,
  clopper_pearson_upper,
)
from robust_jax.certification.certify import ESTIMATE, PREDICT, SELECT, certify, predict
from robust_jax.certification.sampling import check_draws, count, gaussian_noise

CERTIFIERS = {'fixed': certify}

__all__ = [
  'CERTIFIERS',
  'ESTIMATE',
  'PREDICT',
  'SELECT',
  'binomial_test',
  'certified_radius',
  'certify',
  'check_draws',
  'clopper_pearson_lower',
  'clopper_pearson_upper',
  'count',
  'gaussian_noise',
  'predict',
]
