"""Certification by randomized smoothing: which class, with which radius, at which confidence.

`CERTIFIERS` maps the names that a config uses to rules (`rules.Rule`): frozen dataclasses, whose
fields are the configuration. `Fixed` takes the same number of draws of every image; the others stop
as soon as they can. `certify_stream` certifies a stream of images by any of them,
`certify_by_rule` a batch; `certify` is the latter with `Fixed`. `certify_splitting` is apart: it
draws nothing, and its radii are l1.
"""

from robust_jax.certification.anytime import Anytime
from robust_jax.certification.bounds import (
    binomial_test,
    certified_radius,
    clopper_pearson_lower,
    clopper_pearson_upper,
)
from robust_jax.certification.certify import certify, certify_by_rule
from robust_jax.certification.dual import DualCertificate, certify_dual
from robust_jax.certification.fixed import Fixed
from robust_jax.certification.judge import Judgement, judge, predict, verdicts
from robust_jax.certification.radius_grid import RadiusGrid
from robust_jax.certification.rules import Rule
from robust_jax.certification.sampling import (
    ESTIMATE,
    PREDICT,
    SELECT,
    check_draws,
    count,
    gaussian_noise,
    sharded_count,
)
from robust_jax.certification.splitting import SplitCertificate, certify_splitting
from robust_jax.certification.stream import Example, certify_stream

CERTIFIERS = {'fixed': Fixed, 'sequential': RadiusGrid, 'anytime': Anytime}

__all__ = [
  'CERTIFIERS',
  'ESTIMATE',
  'PREDICT',
  'SELECT',
  'Anytime',
  'DualCertificate',
  'Example',
  'Fixed',
  'Judgement',
  'RadiusGrid',
  'Rule',
  'SplitCertificate',
  'binomial_test',
  'certified_radius',
  'certify',
  'certify_by_rule',
  'certify_dual',
  'certify_splitting',
  'certify_stream',
  'check_draws',
  'clopper_pearson_lower',
  'clopper_pearson_upper',
  'count',
  'gaussian_noise',
  'judge',
  'predict',
  'sharded_count',
  'verdicts',
]
