"""Training: methods, the step, optimisers and schedules."""

from robust_jax.training.optimizers import OPTIMIZERS
from robust_jax.training.overfitting import attacked_accuracy
from robust_jax.training.schedules import SCHEDULES
from robust_jax.training.step import all_finite, check_output, create_state, train_step
from robust_jax.training.weight_ascent import awp, sam

__all__ = ['OPTIMIZERS', 'SCHEDULES', 'all_finite', 'attacked_accuracy', 'awp', 'check_output',
           'create_state', 'sam', 'train_step']
