"""Convolutions by oneDNN, which jaxlib carries for x86 CPUs but leaves unused on its own.

XLA:CPU computes a convolution at a third to a half of the rate of a matrix product, and inside
loops at a fifth of that; oneDNN, which is what PyTorch runs, at nearly the whole rate. jaxlib's
custom call for it is not a documented interface: another version may read its configuration
otherwise, and ends the process where it does not understand it, so that it cannot be tried first.
So it is used with the versions of `VERIFIED` alone; everywhere else, and on other devices, `conv`
is `jax.lax.conv_general_dilated`. To verify another version, add it and run tests/test_onednn.py.
"""

import functools
import json
import platform
import sys
import warnings

import jax
import jax.numpy as jnp
import jaxlib
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

VERIFIED = ('0.10.2', '0.11.0', '0.11.1', '0.11.2', '0.12.0', '0.12.0.1')
"""Versions of jaxlib whose custom call has been tested."""

# The kernel's gradient sums over so many images at a time; where channels in times channels out are
# few, and pixels many, over fewer, which stay in the cache.
_IMAGES, _FEWER_IMAGES, _FEW_CHANNELS = 16, 8, 512

_UNROLLED_STEPS = 20
_TARGET = '__onednn$convolution'
_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')


@functools.cache
def available():
  """Whether CPU convolutions run by oneDNN here; says so once if only the jaxlib is in the way."""
  if platform.system() != 'Linux' or platform.machine() != 'x86_64':
    return False
  if jaxlib.__version__ not in VERIFIED:
    print(f'jaxlib {jaxlib.__version__}: convolutions on CPU are slow; fast with '
          f'{", ".join(VERIFIED)}', file=sys.stderr)
    return False
  # XLA cannot write programs with a custom call of this kind: they are compiled each time.
  warnings.filterwarnings('ignore', 'Error writing persistent compilation cache entry .*bad_alloc')
  return True


def conv(images, kernel, *, strides, padding):
  """lax.conv_general_dilated of NHWC images and an HWIO kernel, by oneDNN where it can.

  Equal up to rounding. All derivatives are defined, and vmap; over kernels it is lax's.

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
  result = jax.eval_shape(
      lambda x, k: _lax_conv(x, k, strides=strides, padding=padding), images, kernel)
  kernel_dims = {'input_feature_dim': '2', 'output_feature_dim': '3', 'spatial_dims': ['0', '1']}
  return _call(images, kernel, result.shape, kernel_dims, strides, padding, (1, 1))


def _call(images, kernel, shape, kernel_dims, strides, padding, dilations):
  """The custom call itself, with XLA's OneDnnConvolutionConfig as JSON; its integers are text."""
  data = {'data': {'batch_dim': '0', 'feature_dim': '3', 'spatial_dims': ['1', '2']}}
  window = {'strides': strides, 'pad_left': [low for low, _ in padding],
            'pad_right': [high for _, high in padding], 'window_dilations': dilations}
  configuration = {'onednn_conv_config': {
      'dims': '4', 'feature_groups': '1', 'input': data, 'kernel': {'filter': kernel_dims},
      'output': data, 'window': {name: list(map(str, values)) for name, values in window.items()}}}
  return jax.ffi.ffi_call(
      _TARGET, jax.ShapeDtypeStruct(shape, jnp.float32), custom_call_api_version=1,
      legacy_backend_config=json.dumps(configuration))(images, kernel)


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
  """The gradient with respect to the kernel."""
  shape = kernel.aval.shape
  if not cotangent.size:
    return jnp.zeros(shape, cotangent.dtype)
  return _kernel_gradient_p.bind(images, cotangent, size=shape[:2], strides=strides,
                                 padding=padding)


def _lax_kernel_gradient(images, cotangent, *, size, strides, padding):
  """The sum over images and places of window times cotangent.

  Args:
    images: [batch, height, width, in].
    cotangent: [batch, height', width', out], of the convolution.
    size: (rows, columns) of the kernel.
    strides: (vertical, horizontal).
    padding: ((top, bottom), (left, right)) in pixels.

  Returns:
    [rows, columns, in, out].
  """
  kernel = jax.ShapeDtypeStruct((*size, images.shape[3], cotangent.shape[3]), images.dtype)
  convolve = lambda k: _lax_conv(images, k, strides=strides, padding=padding)
  return jax.linear_transpose(convolve, kernel)(cotangent)[0]


def _onednn_kernel_gradient(images, cotangent, *, size, strides, padding):
  """A convolution that moves over taps, and sums over images and places.

  The cotangent is its kernel; the images are its features. Columns and channels of the images are
  one axis of pixels, [height, width * in, batch], on which the cotangent's columns are `in` apart:
  so the result has rows of columns * in pixels, enough for oneDNN's registers. The batch is summed
  over in parts that stay in the cache.
  """
  (batch, height, width, features), (*_, out) = images.shape, cotangent.shape
  # What the last places see of the images: the padding there, or less than all.
  ends = [taps + (places - 1) * stride - low - length for taps, places, stride, (low, _), length
          in zip(size, cotangent.shape[1:3], strides, padding, (height, width))]
  images = images[:, :max(height + min(ends[0], 0), 0), :max(width + min(ends[1], 0), 0)]
  (_, height, width, _), (rows, columns) = images.shape, size
  if not images.size:  # All windows see the padding alone.
    return jnp.zeros((rows, columns, features, out), images.dtype)
  pads = [(low, max(end, 0)) for (low, _), end in zip(padding, ends)]
  pads[1] = tuple(features * pad for pad in pads[1])
  kernel_dims = {'input_feature_dim': '0', 'output_feature_dim': '3', 'spatial_dims': ['1', '2']}

  def of_part(images, cotangent):
    pixels = images.reshape(len(images), -1).T.reshape(1, height, width * features, -1)
    return _call(pixels, cotangent, (1, rows, columns * features, out), kernel_dims, (1, 1), pads,
                 (strides[0], strides[1] * features)).reshape(rows, columns, features, out)

  most = _FEWER_IMAGES if features * out <= _FEW_CHANNELS else _IMAGES
  count = next(n for n in range(min(most, batch), 0, -1) if batch % n == 0)
  if count == batch:
    return of_part(images, cotangent)
  parts = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]), (images, cotangent))
  add = lambda total, part: (total + of_part(*part), None)
  return lax.scan(add, jnp.zeros((rows, columns, features, out)), parts)[0]


def _batch(arguments, axes, **how):
  """vmap over the images alone joins the two batches; any other is lax's."""
  images, kernel = arguments
  if axes[1] is not None:
    return jax.vmap(lambda x, k: _lax_conv(x, k, **how), axes)(images, kernel), 0
  images = jnp.moveaxis(images, axes[0], 0)
  joined = _conv_p.bind(images.reshape((-1,) + images.shape[2:]), kernel, **how)
  return joined.reshape(images.shape[:2] + joined.shape[1:]), 0


def _batch_kernel_gradient(arguments, axes, **how):
  """vmap has a kernel's gradient for each entry: on CPUs one after the other, elsewhere lax's."""
  size = next(x.shape[axis] for x, axis in zip(arguments, axes) if axis is not None)
  arguments = [batching.bdim_at_front(x, axis, size) for x, axis in zip(arguments, axes)]
  return lax.platform_dependent(
      *arguments,
      cpu=lambda *pairs: lax.map(lambda pair: _kernel_gradient_p.bind(*pair, **how), pairs),
      default=jax.vmap(lambda x, g: _lax_kernel_gradient(x, g, **how))), 0


def _primitive(name, by_lax, by_onednn, transposes, batch):
  """A bilinear function of two arrays that is oneDNN's on CPUs and lax's elsewhere."""
  primitive = Primitive(name)
  primitive.def_impl(lambda *arguments, **how: jax.jit(
      lambda x, y: primitive.bind(x, y, **how))(*arguments))
  primitive.def_abstract_eval(lambda x, y, **how: jax.core.ShapedArray(
      jax.eval_shape(lambda x, y: by_lax(x, y, **how), x, y).shape, x.dtype))
  ad.defbilinear(primitive, *transposes)
  batching.primitive_batchers[primitive] = batch
  mlir.register_lowering(primitive, mlir.lower_fun(by_lax, multiple_results=False))
  mlir.register_lowering(primitive, mlir.lower_fun(by_onednn, multiple_results=False),
                         platform='cpu')
  return primitive


_conv_p = _primitive('robust_jax_conv', _lax_conv, _onednn_conv,
                     (_images_transpose, _kernel_transpose), _batch)
_kernel_gradient_p = _primitive(
    'robust_jax_kernel_gradient', _lax_kernel_gradient, _onednn_kernel_gradient,
    (lambda kernel, images, cotangent, *, size, **how: _images_transpose(
        cotangent, images, kernel, **how),
     lambda kernel, images, cotangent, *, size, **how: conv(images, kernel, **how)),
    _batch_kernel_gradient)
