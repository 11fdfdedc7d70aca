"""Convolutions by oneDNN against lax's, in values, in all derivatives and under vmap."""

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from robust_jax.cpu import onednn

# height, width, in, out, kernel size, stride, padding: 3x3 of both strides on even and odd sides,
# 1x1, LeNet's 5x5, ResNet-50's 7x7, kernels smaller than the stride, pads that differ, windows that
# see the padding alone.
SHAPES = [
    (8, 8, 16, 32, 3, 1, (1, 1)), (8, 8, 16, 32, 3, 2, (1, 1)), (9, 7, 4, 8, 3, 2, (1, 1)),
    (8, 8, 3, 16, 3, 1, (1, 1)), (8, 8, 16, 32, 1, 2, (0, 0)), (12, 10, 1, 20, 5, 1, (0, 0)),
    (14, 14, 5, 7, 7, 2, (3, 3)), (9, 9, 3, 3, 4, 3, (1, 2)), (8, 8, 4, 4, 2, 3, (0, 0)),
    (5, 5, 2, 3, 1, 1, (1, 1)), (1, 1, 3, 2, 3, 1, (1, 1)), (1, 1, 2, 3, 1, 3, (1, 1)),
]


def ours(images, kernel, how):
  return onednn.conv(images, kernel, **how)


def lax_conv(images, kernel, how):
  return jax.lax.conv_general_dilated(images, kernel, how['strides'], how['padding'],
                                      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


@pytest.fixture(params=SHAPES, ids=str)
def case(request):
  height, width, features, out, size, stride, padding = request.param
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.normal(size=(3, height, width, features)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(size, size, features, out)), jnp.float32)
  return images, kernel, {'strides': (stride, stride), 'padding': (padding, padding)}


@pytest.mark.parametrize('most', [16, 2])
@pytest.mark.parametrize('features', [2, 6])
@pytest.mark.parametrize('batch, size, strides, padding', [
    (4, (3, 2), (1, 2), ((2, 0), (0, 3))), (4, (2, 3), (1, 1), ((0, 2), (5, 1))),
    (4, (1, 4), (2, 1), ((0, 0), (1, 2))), (1, (3, 3), (1, 1), ((1, 1), (1, 1))),
    (4, (8, 3), (1, 1), ((0, 0), (1, 1))), (2, (2, 3), (100, 1), ((5, 0), (1, 1))),
])
def test_kernel_gradients_of_any_shape_and_in_parts(batch, size, strides, padding, features, most,
                                                    monkeypatch):
  monkeypatch.setattr(onednn, '_FEWER_IMAGES', most)
  rng = np.random.default_rng(1)
  images = jnp.asarray(rng.normal(size=(batch, 6, 7, features)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(*size, features, 5)), jnp.float32)
  how = {'strides': strides, 'padding': padding}
  gradient = lambda conv: jax.grad(lambda k: jnp.sum(jnp.sin(conv(images, k, how))))(kernel)
  np.testing.assert_allclose(gradient(ours), gradient(lax_conv), rtol=1e-4, atol=1e-4)


def both(transform, case):
  """Compares transform(conv) of ours and lax's, conv a function of images and kernel."""
  images, kernel, how = case
  evaluate = lambda fn: jax.tree.leaves(
      jax.jit(transform(lambda x, k: fn(x, k, how)))(images, kernel))
  for result, expected in zip(evaluate(ours), evaluate(lax_conv), strict=True):
    scale = max(float(jnp.abs(expected).max()), 1)
    np.testing.assert_allclose(result / scale, expected / scale, atol=2e-6)


def test_values(case):
  images, kernel, how = case
  expected = np.zeros(lax_conv(images, kernel, how).shape)
  padded = np.pad(np.asarray(images, np.float64), ((0, 0), *how['padding'], (0, 0)))
  size, stride = len(kernel), how['strides'][0]
  for row in range(expected.shape[1]):
    for column in range(expected.shape[2]):
      window = padded[:, row * stride:row * stride + size, column * stride:column * stride + size]
      expected[:, row, column] = np.tensordot(window, np.asarray(kernel, np.float64), 3)
  np.testing.assert_allclose(ours(images, kernel, how), expected, atol=1e-4)


def test_gradients(case):
  both(lambda conv: jax.grad(lambda x, k: jnp.sum(conv(x, k)**3), (0, 1)), case)


def test_forward_mode(case):
  both(lambda conv: lambda x, k: jax.jvp(conv, (x, k), (x + 1, k - 1)), case)


def test_second_derivatives(case):
  def squared_gradient(conv):
    def norm(x, k):
      gradients = jax.grad(lambda x, k: jnp.sum(conv(x, k)**3), (0, 1))(x, k)
      return sum(jnp.sum(gradient**2) for gradient in gradients) / 1e6
    return jax.grad(norm, (0, 1))
  both(squared_gradient, case)


def test_vmap(case):
  both(lambda conv: lambda x, k: (
      jax.vmap(lambda shift: conv(x + shift, k))(jnp.arange(2.)),
      jax.vmap(lambda factor: conv(x, factor * k))(jnp.arange(2.))), case)


def test_vmap_of_gradients(case):
  """Each image's own gradient, and gradients of one batch against several cotangents."""
  def gradients(conv):
    def own(x, k):
      return jax.vmap(jax.grad(lambda k, x: jnp.sum(conv(x[None], k)**3)), (None, 0))(k, x)

    def several(x, k):
      out, pull = jax.vjp(lambda k: conv(x, k), k)
      return jax.vmap(pull)(jnp.stack([out, 2 * out + 1]))

    return lambda x, k: (own(x, k), several(x, k))
  both(gradients, case)


def test_in_a_loop_and_on_several_devices(case):
  images, kernel, how = case
  looped = jax.pmap(lambda x: jax.lax.fori_loop(
      0, 3, lambda i, total: total + ours(x, kernel, how), jnp.zeros_like(ours(x, kernel, how))))
  expected = 3 * lax_conv(images, kernel, how)
  np.testing.assert_allclose(looped(jnp.stack([images, images]))[1], expected, atol=2e-4)


def test_other_types_and_versions_are_laxs(monkeypatch, capsys):
  images, kernel = jnp.ones((1, 4, 4, 2), jnp.bfloat16), jnp.ones((3, 3, 2, 2), jnp.bfloat16)
  conv = lambda x, k: onednn.conv(x, k, strides=(1, 1), padding=((1, 1), (1, 1)))
  text = lambda x, k: jax.jit(conv).lower(x, k).as_text()
  full = images.astype(jnp.float32), kernel.astype(jnp.float32)
  assert ('onednn' in text(*full)) == onednn.available()
  assert 'onednn' not in text(images, kernel)
  assert conv(images[:0], kernel).shape == (0, 4, 4, 2)
  monkeypatch.setattr(onednn, 'VERIFIED', ('0.9',))
  onednn.available.cache_clear()
  jax.clear_caches()
  assert 'onednn' not in text(*full)
  assert not onednn.available()
  onednn.available.cache_clear()
  assert capsys.readouterr().err in ('', f'jaxlib {jaxlib.__version__}: convolutions on CPU are '
                                         'slow; fast with 0.9\n')  # '': no x86 Linux
