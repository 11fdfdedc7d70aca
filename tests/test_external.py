"""Classifiers that users bring as functions."""

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
  """Writes the module `brought` in a folder that Python imports from."""
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'brought', raising=False)
  return lambda code: (tmp_path / 'brought.py').write_text(code)


def test_a_function_of_a_module(module):
  module('import jax.numpy as jnp\n'
         'def logits(x): return jnp.stack([x.sum((1, 2, 3)), x.max((1, 2, 3))], axis=1)\n')
  logits_fn = external.load('brought:logits')
  images = np.random.default_rng(0).random((2, *SHAPE), np.float32)
  external.check(logits_fn, SHAPE, 2)
  np.testing.assert_allclose(
      jax.jit(logits_fn)(images),
      np.stack([images.sum((1, 2, 3)), images.max((1, 2, 3))], 1), rtol=1e-6)


@pytest.mark.parametrize(('target', 'code', 'message'), [
    ('brought', '', "'brought'; 'package.module:function' is allowed"),
    (':logits', '', "':logits'; 'package.module:function' is allowed"),
    ('brought:', '', "'brought:'; 'package.module:function' is allowed"),
    ('', '', "''; 'package.module:function' is allowed"),
    ('.brought:logits', '', 'importing .brought raises TypeError'),
    ('no.such.module:f', '', "raises ModuleNotFoundError: No module named 'no'"),
    ('brought:f', 'import not_there', "raises ModuleNotFoundError: No module named 'not_there'"),
    ('brought:f', 'raise RuntimeError("first\\nsecond")', 'raises RuntimeError: first;'),
    ('brought:f', 'def f(:', 'raises SyntaxError'),
    ('brought:f', 'raise SystemExit', 'raises SystemExit;'),
    ('brought:g', 'def f(x): return x', "brought has no 'g'"),
    ('brought:f', 'f = 3', 'which is a int; something that can be called is allowed'),
])
def test_mistakes_are_one_line(target, code, message, module):
  module(code)
  with pytest.raises(UserError, match=re.escape(message)) as raised:
    external.load(target)
  assert '\n' not in str(raised.value)


def concrete(images):
  return jnp.zeros((2, 5)) if images.sum() > 0 else jnp.ones((2, 5))


@pytest.mark.parametrize(('logits_fn', 'message'), [
    (lambda x: x.mean((1, 2)), r'makes float32[2, 1] of images float32[2, 4, 3, 1]; logits '
                               r'float32[2, 5] are allowed'),
    (lambda x: jnp.zeros((2, 5), jnp.int32), 'makes int32[2, 5] of'),
    (lambda x: jnp.zeros(5), 'makes float32[5] of'),
    (lambda x: (jnp.zeros((2, 5)),), 'makes a tuple of'),
    (lambda x: None, 'makes a NoneType of'),
    (lambda x: np.zeros((2, 5)) + np.asarray(x).mean(), 'it must be traceable by JAX'),
    (concrete, 'it must be traceable by JAX'),
    (lambda x: x @ jnp.zeros((7, 5)), 'on images float32[2, 4, 3, 1]; it must be'),
    (lambda x, train: x, 'raises TypeError'),
])
def test_what_makes_no_logits(logits_fn, message):
  with pytest.raises(UserError, match=re.escape(message)) as raised:
    external.check(logits_fn, SHAPE, 5, target='brought:f')
  assert str(raised.value).startswith('brought:f ') and '\n' not in str(raised.value)


def test_half_precision_logits_and_any_pytree_callable_are_allowed():
  external.check(lambda x: jnp.zeros((len(x), 5), jnp.bfloat16), SHAPE, 5)
  external.check(jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, jnp.ones((12, 5))),
                 SHAPE, 5)
