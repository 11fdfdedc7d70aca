"""Attacks compiled as a whole, once for all calls with arrays of the same shapes."""

import functools

import jax

# What is compiled is dropped when so many others have been asked for since.
_KEPT = 32


def call(attack, logits_fn, *args, **settings):
  """attack(*args, **settings), compiled where `logits_fn` is a `jax.tree_util.Partial`.

  New arrays in the Partial, images, keys and radii then compile nothing. Any other function may
  read what changes between calls, as parameters that go on being trained, which a compiled
  function would not see; so it is run as it is. What is called within another compiled function,
  as a training step is, becomes a part of that.

  Args:
    attack: a function at the top level of a module.
    logits_fn: what the caller was given.
    *args: pytrees of arrays, the `smoothing.Victim` of logits_fn among them.
    **settings: hashable; each other value compiles anew.
  """
  _, structure = jax.tree.flatten((logits_fn, args))
  leaves = jax.tree.leaves((logits_fn, args, settings))
  traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
  if traced or not isinstance(logits_fn, jax.tree_util.Partial):
    return attack(*args, **settings)
  return _compiled(attack, structure, tuple(settings.items()))(*args)


@functools.lru_cache(maxsize=_KEPT)
def _compiled(attack, structure, settings):
  del structure  # It holds the function; apart, so that each is dropped with what was compiled.
  return jax.jit(functools.partial(attack, **dict(settings)))
