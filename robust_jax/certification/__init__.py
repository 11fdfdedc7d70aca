"""Certification by randomized smoothing: which class, with which radius, at which confidence.

`CERTIFIERS` maps the names that a config uses to functions, whose keyword arguments are the
configuration. `fixed`, which takes the same number of draws of every image, is
(key, logits_fn, images, *, sigma, ..., example_ids=None, count=count) -> types.Certificate.
The others, in `RULES`, stop as soon as they can: (*, sigma, ...) -> Rule, by which
`certify_by_rule` certifies a batch and `certify_stream` a stream of images.
"""

from robust_jax.certification.bounds import (
    binomial_test,
    certified_radius,
    clopper_pearson_lower,
    clopper_pearson_upper,
)
from robust_jax.certification.certify import ESTIMATE, PREDICT, SELECT, certify, predict
from robust_jax.certification.rules import Rule, anytime_rule, sequential_rule
from robust_jax.certification.sampling import check_draws, count, gaussian_noise
from robust_jax.certification.sharded import sharded_count
from robust_jax.certification.stream import Example, certify_by_rule, certify_stream

RULES = {'sequential': sequential_rule, 'anytime': anytime_rule}
CERTIFIERS = {'fixed': certify, **RULES}

__all__ = [
  'CERTIFIERS',
  'ESTIMATE',
  'PREDICT',
  'RULES',
  'SELECT',
  'Example',
  'Rule',
  'anytime_rule',
  'binomial_test',
  'certified_radius',
  'certify',
  'certify_by_rule',
  'certify_stream',
  'check_draws',
  'clopper_pearson_lower',
  'clopper_pearson_upper',
  'count',
  'gaussian_noise',
  'predict',
  'sequential_rule',
  'sharded_count',
]
