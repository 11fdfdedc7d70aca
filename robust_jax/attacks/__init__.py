"""Attacks: `pgd` ascends any objective in any perturbation set; `ATTACKS` are `types.Attack`s."""

from robust_jax.attacks.apgd import apgd_attack
from robust_jax.attacks.autoattack import autoattack
from robust_jax.attacks.carlini_wagner import carlini_wagner
from robust_jax.attacks.confirmed import Confirmed, smallest
from robust_jax.attacks.ddn import ddn
from robust_jax.attacks.fab import fab_attack
from robust_jax.attacks.fgsm import fgsm
from robust_jax.attacks.lbfgs import lbfgs_attack
from robust_jax.attacks.none import no_attack
from robust_jax.attacks.pgd import pgd, pgd_attack
from robust_jax.attacks.spatial import spatial
from robust_jax.attacks.square import square_attack

ATTACKS = {'pgd': pgd_attack, 'fgsm': fgsm, 'ddn': ddn, 'apgd': apgd_attack,
           'fab': fab_attack, 'square': square_attack, 'carlini_wagner': carlini_wagner,
           'spatial': spatial, 'lbfgs': lbfgs_attack, 'none': no_attack}
fgsm_attack = fgsm  # As the other attacks are called.
# Several attacks in one, which are for evaluation alone; they have the fields of `ATTACKS`.
SUITES = {'autoattack': autoattack}
# Those that run on the host: they cannot be compiled, hence not be a part of a training step.
ON_HOST = ('lbfgs',)

__all__ = ['ATTACKS', 'ON_HOST', 'SUITES', 'Confirmed', 'apgd_attack', 'autoattack',
           'carlini_wagner', 'ddn', 'fab_attack', 'fgsm', 'fgsm_attack', 'lbfgs_attack',
           'no_attack', 'pgd', 'pgd_attack', 'smallest', 'spatial', 'square_attack']
