"""Deterministic bounds of any network: what its logits cannot leave while an image is in a ball.

`ibp` has intervals of logits; `crown` has lower bounds of margins, by which an image is `certified`
or not; `margins` has those of a batch for training; `exact` decides it, of small piecewise linear
networks. All walk over the jaxpr of the network (`propagate`), with what `rules` knows of each of
its primitives: a primitive is one function and one entry of `rules.RULES`.
"""

from robust_jax.bounds.crown import certified, crown
from robust_jax.bounds.exact import Exact, exact
from robust_jax.bounds.ibp import ibp
from robust_jax.bounds.margins import margins

__all__ = ['Exact', 'certified', 'crown', 'exact', 'ibp', 'margins']
