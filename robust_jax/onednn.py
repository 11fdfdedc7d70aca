"""Convolutions by oneDNN, which jaxlib carries for x86 CPUs but leaves unused on its own.

XLA:CPU computes a convolution at a third to a half of the rate of a matrix product, and inside
loops at a fifth of that; oneDNN, which is what PyTorch runs, at nearly the whole rate. jaxlib's
custom call for it is not a documented interface: another version may read its configuration
otherwise, and ends the process where it does not understand it. So it is used with the versions of
`VERIFIED` alone; everywhere else, and on other devices, `conv` is `jax.lax.conv_general_dilated`.
To verify another version, add it and run tests/test_onednn.py.
"""

import json
import platform

import jax
import jax.numpy as jnp
import jaxlib
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

VERIFIED = ('0.10.2',)
"""Versions of jaxlib whose custom call has been tested."""

# Where the kernel's gradient is a product of windows: channels at most, and floats of a part.
_FEW_CHANNELS = 48
_PART = 2**17

_TARGET = '__onednn$convolution'
_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')


def available():
  """Whether CPU convolutions run by oneDNN here."""
  return (jaxlib.__version__ in VERIFIED and platform.system() == 'Linux'
          and platform.machine() == 'x86_64')


def conv(images, kernel, *, strides, padding):
  """lax.conv_general_dilated of NHWC images and an HWIO kernel, by oneDNN where it can.

  Equal up to rounding. All derivatives and vmap over the images are defined; with respect to the
  kernel they are lax's.

  Args:
    images: [batch, height, width, in].
    kernel: [rows, columns, in, out].
    strides: (vertical, horizontal).
    padding: ((top, bottom), (left, right)) in pixels.

  Returns:
    [batch, height', width', out].
  """
  strides = tuple(map(int, strides))
  padding = tuple((int(low), int(high)) for low, high in padding)
  if not available() or not _understood(images, kernel, padding):
    return _lax_conv(images, kernel, strides=strides, padding=padding)
  return _conv_p.bind(images, kernel, strides=strides, padding=padding)


def _understood(images, kernel, padding):
  return (images.dtype == kernel.dtype == jnp.float32 and images.ndim == 4
          and 0 not in images.shape + kernel.shape
          and all(low >= 0 and high >= 0 for low, high in padding))


def _lax_conv(images, kernel, *, strides, padding):
  return lax.conv_general_dilated(images, kernel, strides, padding,
                                  dimension_numbers=_DIMENSIONS)


def _onednn_conv(images, kernel, *, strides, padding):
  """The custom call itself."""
  result = jax.eval_shape(
      lambda x, k: _lax_conv(x, k, strides=strides, padding=padding), images, kernel)
  call = jax.ffi.ffi_call(_TARGET, result, custom_call_api_version=1,
                          legacy_backend_config=_configuration(strides, padding))
  return call(images, kernel)


def _configuration(strides, padding):
  """XLA's OneDnnConvolutionConfig as JSON; its integers are 64 bits wide, hence text."""
  data = {'data': {'batch_dim': '0', 'feature_dim': '3', 'spatial_dims': ['1', '2']}}
  kernel = {'input_feature_dim': '2', 'output_feature_dim': '3', 'spatial_dims': ['0', '1']}
  (top, bottom), (left, right) = padding
  window = {'strides': [str(stride) for stride in strides], 'pad_left': [str(top), str(left)],
            'pad_right': [str(bottom), str(right)], 'window_dilations': ['1', '1']}
  return json.dumps({'onednn_conv_config': {
      'dims': '4', 'feature_groups': '1', 'input': data, 'kernel': {'filter': kernel},
      'output': data, 'window': window}})


def _images_transpose(cotangent, images, kernel, *, strides, padding):
  """The gradient with respect to the images: convolutions again.

  At stride s, the pixels of each residue modulo s see their own taps of the kernel. They are
  computed together, as s * s times the features of one convolution of the cotangent.
  """
  shape = images.aval.shape
  strided = [stride for stride in strides if stride > 1]
  if not strided:
    flipped = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    full = [(size - 1 - low, length + low - out) for size, (low, _), length, out in zip(
        kernel.shape, padding, shape[1:3], cotangent.shape[1:3])]
    return conv(cotangent, flipped, strides=(1, 1), padding=full)
  rows, columns, features, out = kernel.shape
  taps = [-(-size // stride) for size, stride in zip((rows, columns), strides)]
  spare = [tap * stride - size for tap, stride, size in zip(taps, strides, (rows, columns))]
  kernel = jnp.pad(kernel, ((0, spare[0]), (0, spare[1]), (0, 0), (0, 0)))
  kernel = kernel.reshape(taps[0], strides[0], taps[1], strides[1], features, out)
  kernel = kernel[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
  kernel = kernel.reshape(taps[0], taps[1], out, strides[0] * strides[1] * features)
  phases = conv(cotangent, kernel, strides=(1, 1), padding=[(tap - 1, tap - 1) for tap in taps])
  height, width = phases.shape[1:3]
  phases = phases.reshape(-1, height, width, strides[0], strides[1], features)
  full = phases.transpose(0, 1, 3, 2, 4, 5).reshape(
      -1, height * strides[0], width * strides[1], features)
  # Pixel i of the images is pixel i + low of the padded ones, which `full` begins with.
  edges = [(-low, length + low - size) for (low, _), length, size in zip(
      padding, shape[1:3], full.shape[1:3])]
  zero = jnp.zeros((), full.dtype)
  return lax.pad(full, zero, [(0, 0, 0), *((low, high, 0) for low, high in edges), (0, 0, 0)])


def _kernel_transpose(cotangent, images, kernel, *, strides, padding):
  """The gradient with respect to the kernel, for which oneDNN's custom call has nothing.

  With few channels it is a matrix product of windows, made for a few images at a time, so that
  they stay in the cache; with many, XLA's own convolution is as fast.
  """
  rows, columns, features, out = kernel.aval.shape
  if max(features, out) > _FEW_CHANNELS or rows * columns == 1:
    convolve = lambda k: _lax_conv(images, k, strides=strides, padding=padding)
    return jax.linear_transpose(convolve, kernel.aval)(cotangent)[0]
  batch, height, width, _ = cotangent.shape
  reach = [(height - 1) * strides[0] + rows, (width - 1) * strides[1] + columns]
  edges = [(low, size - low - length) for (low, _), size, length in zip(
      padding, reach, images.shape[1:3])]

  def of_part(part):
    images, cotangent = part
    images = lax.pad(images, jnp.zeros((), images.dtype),
                     [(0, 0, 0), *((low, high, 0) for low, high in edges), (0, 0, 0)])
    if features == 1:
      # Windows first: memory is copied by rows, and not by single numbers.
      windows = jnp.stack([
          images[:, row:row + (height - 1) * strides[0] + 1:strides[0],
                 column:column + (width - 1) * strides[1] + 1:strides[1]]
          for row in range(rows) for column in range(columns)])
      product = windows.reshape(rows * columns, -1) @ cotangent.reshape(-1, out)
      return product.reshape(rows, columns, features, out)
    across = [images[:, :, column:column + (width - 1) * strides[1] + 1:strides[1]]
              for column in range(columns)]
    if strides[0] == 1:
      # Windows across of the images, windows down of the cotangent: all pairs are wanted.
      images = jnp.concatenate(across, -1)
      down = jnp.concatenate([jnp.pad(cotangent, ((0, 0), (row, rows - 1 - row), (0, 0), (0, 0)))
                              for row in range(rows)], -1)
      product = images.reshape(-1, columns * features).T @ down.reshape(-1, rows * out)
      return product.reshape(columns, features, rows, out).transpose(2, 0, 1, 3)
    windows = jnp.concatenate([piece[:, row:row + (height - 1) * strides[0] + 1:strides[0]]
                               for row in range(rows) for piece in across], -1)
    product = windows.reshape(-1, rows * columns * features).T @ cotangent.reshape(-1, out)
    return product.reshape(rows, columns, features, out)

  size = max(images[0].size * columns, cotangent[0].size * rows)
  count = max(_PART // size, 1)
  count = next(n for n in range(min(count, batch), 0, -1) if batch % n == 0)
  parts = jax.tree.map(lambda x: x.reshape((-1, count) + x.shape[1:]), (images, cotangent))
  if count == batch:
    return of_part((images, cotangent))
  first, rest = jax.tree.map(lambda x: x[0], parts), jax.tree.map(lambda x: x[1:], parts)
  return lax.scan(lambda total, part: (total + of_part(part), None), of_part(first), rest)[0]


def _batch(arguments, axes, **how):
  """vmap over the images alone joins the two batches; any other is lax's."""
  images, kernel = arguments
  if axes[1] is not None:
    return jax.vmap(lambda x, k: _lax_conv(x, k, **how), axes)(images, kernel), 0
  images = jnp.moveaxis(images, axes[0], 0)
  joined = _conv_p.bind(images.reshape((-1,) + images.shape[2:]), kernel, **how)
  return joined.reshape(images.shape[:2] + joined.shape[1:]), 0


_conv_p = Primitive('robust_jax_conv')
_conv_p.def_impl(lambda *arguments, **how: jax.jit(
    lambda x, k: _conv_p.bind(x, k, **how))(*arguments))
_conv_p.def_abstract_eval(lambda images, kernel, **how: jax.core.ShapedArray(
    jax.eval_shape(lambda x, k: _lax_conv(x, k, **how), images, kernel).shape, images.dtype))
ad.defbilinear(_conv_p, _images_transpose, _kernel_transpose)
batching.primitive_batchers[_conv_p] = _batch
mlir.register_lowering(_conv_p, mlir.lower_fun(_lax_conv, multiple_results=False))
mlir.register_lowering(_conv_p, mlir.lower_fun(_onednn_conv, multiple_results=False),
                       platform='cpu')
