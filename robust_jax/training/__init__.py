"""Training: methods, the step, optimisers and schedules."""

from robust_jax.training.optimizers import OPTIMIZERS
from robust_jax.training.schedules import SCHEDULES
from robust_jax.training.step import all_finite, check_output, create_state, train_step

__all__ = ['OPTIMIZERS', 'SCHEDULES', 'all_finite', 'check_output', 'create_state', 'train_step']
