"""Classifiers that are functions of the user's own."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax.errors import UserError
from robust_jax.models import external

SHAPE = (4, 3, 1)


@pytest.fixture
def module(tmp_path, monkeypatch):
  """Writes the module `own` in a folder that Python imports from."""
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'own', raising=False)
  return lambda code: (tmp_path / 'own.py').write_text(code)


def test_a_function_of_a_module(module):
  module('import jax.numpy as jnp\n'
         'def logits(x): return jnp.stack([x.sum((1, 2, 3)), x.max((1, 2, 3))], axis=1)\n')
  logits_fn = external.load('own:logits')
  images = np.random.default_rng(0).random((2, *SHAPE), np.float32)
  external.check(logits_fn, SHAPE, 2)
  np.testing.assert_allclose(
      jax.jit(logits_fn)(images),
      np.stack([images.sum((1, 2, 3)), images.max((1, 2, 3))], 1), rtol=1e-6)


@pytest.mark.parametrize(('target', 'code', 'message'), [
    ('own', '', "must be 'package.module:name', got 'own'"),
    (':logits', '', "got ':logits'"),
    ('own:', '', "got 'own:'"),
    ('', '', "got ''"),
    ('.own:logits', '', 'importing .own raises TypeError'),
    ('no.such.module:f', '', "raises ModuleNotFoundError: No module named 'no'"),
    ('own:f', 'import not_there', "raises ModuleNotFoundError: No module named 'not_there'"),
    ('own:f', 'raise RuntimeError("first\\nsecond")', 'raises RuntimeError: first'),
    ('own:f', 'def f(:', 'raises SyntaxError'),
    ('own:f', 'raise SystemExit', 'raises SystemExit'),
    ('own:g', 'def f(x): return x', "own has no 'g'"),
    ('own:f', 'f = 3', 'got a int'),
])
def test_mistakes_are_one_line(target, code, message, module):
  module(code)
  with pytest.raises(UserError, match=re.escape(message)) as raised:
    external.load(target)
  assert '\n' not in str(raised.value)


def concrete(images):
  return jnp.zeros((2, 5)) if images.sum() > 0 else jnp.ones((2, 5))


@pytest.mark.parametrize(('logits_fn', 'message'), [
    (lambda x: x.mean((1, 2)), r'images float32[2, 4, 3, 1] to logits float32[2, 5], got '
                               r'float32[2, 1]'),
    (lambda x: jnp.zeros((2, 5), jnp.int32), 'got int32[2, 5]'),
    (lambda x: jnp.zeros(5), 'got float32[5]'),
    (lambda x: (jnp.zeros((2, 5)),), 'got a tuple'),
    (lambda x: None, 'got a NoneType'),
    (lambda x: np.zeros((2, 5)) + np.asarray(x).mean(), 'traceable by JAX'),
    (concrete, 'traceable by JAX'),
    (lambda x: x @ jnp.zeros((7, 5)), 'on images float32[2, 4, 3, 1]'),
    (lambda x, train: x, 'raises TypeError'),
])
def test_what_makes_no_logits(logits_fn, message):
  with pytest.raises(UserError, match=re.escape(message)) as raised:
    external.check(logits_fn, SHAPE, 5, target='own:f')
  assert str(raised.value).startswith('own:f ') and '\n' not in str(raised.value)


def test_half_precision_logits_and_any_pytree_callable_are_allowed():
  external.check(lambda x: jnp.zeros((len(x), 5), jnp.bfloat16), SHAPE, 5)
  external.check(jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, jnp.ones((12, 5))),
                 SHAPE, 5)
