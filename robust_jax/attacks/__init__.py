"""Attacks: `pgd` and `fgsm` ascend any objective; those of `ATTACKS` are `types.Attack`s."""

from robust_jax.attacks.ascent import fgsm, pgd
from robust_jax.attacks.ddn import ddn
from robust_jax.attacks.gradient import fgsm_attack, no_attack, pgd_attack
from robust_jax.attacks.lbfgs import lbfgs_attack

ATTACKS = {'pgd': pgd_attack, 'fgsm': fgsm_attack, 'ddn': ddn, 'lbfgs': lbfgs_attack,
           'none': no_attack}
# Those that run on the host: they cannot be compiled, hence not be a part of a training step.
ON_HOST = ('lbfgs',)

__all__ = ['ATTACKS', 'ON_HOST', 'ddn', 'fgsm', 'fgsm_attack', 'lbfgs_attack', 'no_attack', 'pgd',
           'pgd_attack']
