"""Train, attack and certify robust image classifiers in JAX.

Import the part you need: `from robust_jax import smoothing, attacks, certification`.
"""

__version__ = '0.1.0'
