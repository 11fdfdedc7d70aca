"""Attacks: `pgd` and `fgsm` ascend any objective; those of `ATTACKS` are `types.Attack`s."""

from robust_jax.attacks.ascent import fgsm, pgd
from robust_jax.attacks.ddn import ddn
from robust_jax.attacks.gradient import fgsm_attack, no_attack, pgd_attack

ATTACKS = {'pgd': pgd_attack, 'fgsm': fgsm_attack, 'ddn': ddn, 'none': no_attack}

__all__ = ['ATTACKS', 'ddn', 'fgsm', 'fgsm_attack', 'no_attack', 'pgd', 'pgd_attack']
