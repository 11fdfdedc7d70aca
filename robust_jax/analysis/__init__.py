"""From logs to figures and tables: NumPy only, no model and no device.

>>> from robust_jax import analysis
>>> table = analysis.Table(['radius', 'certified'], [[0.25, 0.74], [0.5, 0.57]])
>>> print(analysis.to_text(table), end='')
radius  certified
------  ---------
  0.25       0.74
   0.5       0.57
"""

from robust_jax.analysis.attacked import AttackLog, clean_accuracy, robust_accuracy
from robust_jax.analysis.attacked import read as read_attack
from robust_jax.analysis.certified import (
    abstention_rate,
    accuracy_interval,
    average_certified_radius,
    certified_accuracy,
    envelope,
)
from robust_jax.analysis.table import Table, to_csv, to_latex, to_markdown, to_text

__all__ = [
    'AttackLog', 'Table', 'abstention_rate', 'accuracy_interval', 'average_certified_radius',
    'certified_accuracy', 'clean_accuracy', 'envelope', 'read_attack', 'robust_accuracy',
    'to_csv', 'to_latex', 'to_markdown', 'to_text',
]
