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

# Up to so many channels the kernel's gradient is a product of windows,
_FEW_CHANNELS = 48
# which are copied by planes up to so many channels of the images,
_PLANES = 4
# and of so many floats at a time.
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
  return _pad(full, [(-low, length + low - size) for (low, _), length, size in zip(
      padding, shape[1:3], full.shape[1:3])])


def _pad(images, edges):
  """Zeros before and after rows and columns; negative edges cut."""
  return lax.pad(images, jnp.zeros((), images.dtype),
                 [(0, 0, 0), *((low, high, 0) for low, high in edges), (0, 0, 0)])


def _kernel_transpose(cotangent, images, kernel, *, strides, padding):
  """The gradient with respect to the kernel, for which oneDNN's custom call has nothing.

  With few channels it is a matrix product of windows, made for a few images at a time, so that
  they stay in the cache; with many, XLA's own convolution is as fast.
  """
  shape, dtype = kernel.aval.shape, kernel.aval.dtype
  rows, columns, features, out = shape
  batch, height, width, _ = cotangent.shape
  if max(features, out) > _FEW_CHANNELS or rows * columns == 1 or not cotangent.size:
    convolve = lambda k: _lax_conv(images, k, strides=strides, padding=padding)
    return jax.linear_transpose(convolve, kernel.aval)(cotangent)[0]
  if features <= _PLANES or strides[0] > 1:
    product, size = _windows_product, rows * columns * features * height * width
  else:
    product, size = _pairs_product, max(images[0].size * columns, cotangent[0].size * rows)

  def of_part(images, cotangent):
    return product(images, cotangent, shape, strides, padding)

  count = next(n for n in range(min(max(_PART // size, 1), batch), 0, -1) if batch % n == 0)
  if count == batch:
    return of_part(images, cotangent)
  parts = jax.tree.map(lambda x: x.reshape((-1, count) + x.shape[1:]), (images, cotangent))
  add = lambda total, part: (total + of_part(*part), None)
  return lax.scan(add, jnp.zeros(shape, dtype), parts)[0]


# Two ways to the same sum over images and places, of window times cotangent: [rows, columns, in,
# out] from images [batch, height, width, in] and cotangent [batch, height', width', out].


def _windows_product(images, cotangent, shape, strides, padding):
  """One product of whole windows, of few channels by planes: so whole rows of pixels are copied."""
  rows, columns, features, out = shape
  _, height, width, _ = cotangent.shape
  images = _pad(images, [_edges(*one) for one in zip(
      images.shape[1:3], (height, width), (rows, columns), strides, padding)])
  planes = features <= _PLANES
  if planes:
    images = jnp.moveaxis(images, 3, 0)
  down = 2 if planes else 1
  seen = [piece for strip in _seen(images, down, rows, strides[0], height)
          for piece in _seen(strip, down + 1, columns, strides[1], width)]
  size = rows * columns * features
  windows = (jnp.stack(seen).reshape(size, -1) if planes
             else jnp.concatenate(seen, -1).reshape(-1, size).T)
  return (windows @ cotangent.reshape(-1, out)).reshape(shape)


def _pairs_product(images, cotangent, shape, strides, padding):
  """Windows across of the images, windows down of the cotangent: all pairs are wanted.

  Both are padded before they are cut and joined, because XLA computes a concatenation of padded
  arrays entry by entry.
  """
  rows, columns, features, out = shape
  (top, _), across = padding
  height, width = images.shape[1], cotangent.shape[2]
  images = _pad(images, [(0, 0), _edges(images.shape[2], width, columns, strides[1], across)])
  cotangent = _pad(cotangent, [(rows - 1 - top, top + height - cotangent.shape[1]), (0, 0)])
  windows = jnp.concatenate(_seen(images, 2, columns, strides[1], width), -1)
  # Row i of the images meets row i + top - r of the cotangent in row r of the kernel.
  met = jnp.concatenate(_seen(cotangent, 1, rows, 1, height)[::-1], -1)
  product = windows.reshape(-1, columns * features).T @ met.reshape(-1, rows * out)
  return product.reshape(columns, features, rows, out).transpose(2, 0, 1, 3)


def _edges(length, places, taps, stride, padding):
  """The padding that the places of the result really reach: that of the end may be less."""
  return padding[0], (places - 1) * stride + taps - padding[0] - length


def _seen(images, axis, taps, stride, places):
  """What each place sees of padded images along one axis through each of the taps: a list."""
  return [lax.slice_in_dim(images, tap, tap + (places - 1) * stride + 1, stride, axis)
          for tap in range(taps)]


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
