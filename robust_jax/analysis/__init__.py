"""From logs to figures and tables: NumPy only, no model and no device.

Examples:
  >>> from robust_jax import analysis
  >>> table = analysis.Table(['radius', 'certified'], [[0.25, 0.74], [0.5, 0.57]])
  >>> print(analysis.to_text(table), end='')
  radius  certified
  ------  ---------
    0.25       0.74
     0.5       0.57
"""

from robust_jax.analysis.attacked import (
    AttackLog,
    attack_at_once,
    attack_curve,
    clean_accuracy,
    robust,
    robust_accuracy,
    undefined_images,
    verdicts,
)
from robust_jax.analysis.attacked import read as read_attack
from robust_jax.analysis.bounded import (
    BoundLog,
    bound_crossings,
    broken_within,
    is_same_network,
    robust_interval,
    verified_radius,
)
from robust_jax.analysis.bounded import read as read_bound
from robust_jax.analysis.certified import (
    abstention_rate,
    acr_text,
    average_certified_radius,
    certified_accuracy,
    certified_images,
    certified_probability,
    decided_radii,
    envelope,
    is_decided,
    largest_radius,
    mean_draws,
    round_radii,
)
from robust_jax.analysis.comparison import common_images, on_images
from robust_jax.analysis.intervals import (
    accuracy_interval,
    mean_interval,
    paired_difference,
    welch_difference,
)
from robust_jax.analysis.recertify import simultaneous
from robust_jax.analysis.sandwich import SandwichLog, crossings, radius_ratios, sandwich_at_once
from robust_jax.analysis.sandwich import read as read_sandwich
from robust_jax.analysis.table import Best, Table, to_csv, to_latex, to_markdown, to_text

__all__ = [
    'AttackLog', 'Best', 'BoundLog', 'SandwichLog', 'Table', 'abstention_rate',
    'accuracy_interval', 'acr_text', 'attack_at_once', 'attack_curve', 'average_certified_radius',
    'bound_crossings', 'broken_within', 'certified_accuracy', 'certified_images',
    'certified_probability', 'clean_accuracy', 'common_images', 'crossings', 'decided_radii',
    'envelope', 'is_decided', 'is_same_network', 'largest_radius', 'mean_draws', 'mean_interval',
    'on_images', 'paired_difference', 'radius_ratios', 'read_attack', 'read_bound',
    'read_sandwich', 'robust', 'robust_accuracy', 'robust_interval', 'round_radii',
    'sandwich_at_once', 'simultaneous', 'to_csv', 'to_latex', 'to_markdown', 'to_text',
    'undefined_images', 'verdicts', 'verified_radius', 'welch_difference',
]
