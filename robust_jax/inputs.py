"""What public functions take and what they refuse: one check of images, labels, radii and logits.

Shapes and dtypes are checked always, values where they are concrete. Under jit, where values are
not known, an example whose label, target or radius is out of range gets images of NaN, so that
its result cannot pass for one (`attacked`). All raise ValueError, in one line.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from robust_jax.errors import UserError

# float32 rounding of images that went through a projection or a resize.
TOLERANCE = 1e-6


def check(name, values, valid, expected):
  """Raises ValueError, in one line, with the first of `values` where `valid` is False.

  Args:
    name: of the argument.
    values: scalar or array.
    valid: bool, broadcast against values.
    expected: what they must be, in words.
  """
  values, valid = np.broadcast_arrays(values, valid)
  if not valid.all():
    raise ValueError(f'{name} must be {expected}, got {values[~valid][0]}')


def numbers(name, value):
  """An array of integers or floating-point numbers; ValueError for anything else."""
  value = _array(value)
  if not jnp.issubdtype(value.dtype, jnp.integer) and not jnp.issubdtype(value.dtype, jnp.floating):
    got = repr(value.item()) if value.ndim == 0 else value.dtype
    raise ValueError(f'{name} must be of numbers, got {got}')
  return value


def images(value, *, name='images', in_box=True):
  """Images as float32 [batch, ...].

  Args:
    value: floating point [batch, ...] in [0, 1], at least one. Integers are refused, not scaled.
    name: of the argument.
    in_box: whether values are checked, where they are concrete.

  Returns:
    The same as float32 (jax array, or NumPy if `value` is not a jax array).
  """
  value = _array(value)
  floating(value, name=name)
  if value.ndim < 2 or 0 in value.shape:
    raise ValueError(f'{name} must have shape [batch, ...] with at least one image and pixel, got '
                     f'{value.shape}')
  if in_box and concrete(value):
    known = np.asarray(value)
    low, high = float(known.min()), float(known.max())
    if np.isnan(low):
      raise ValueError(f'{name} must be in [0, 1], got nan at {np.argwhere(np.isnan(known))[0]}')
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
      raise ValueError(f'{name} must be in [0, 1], got values from {low:g} to {high:g}')
  return value.astype(np.float32)


def floating(value, *, name='images'):
  """Raises ValueError unless an array is floating-point: pixels of 0 to 255 are not scaled."""
  if not jnp.issubdtype(value.dtype, jnp.floating):
    divide = ': pixels of 0 to 255 are to be divided by 255' if jnp.issubdtype(
        value.dtype, jnp.integer) else ''
    raise ValueError(f'{name} must be floating point in [0, 1], got {value.dtype}{divide}')


def labels(value, batch, *, num_classes=None, name='labels'):
  """Labels, or targets, as integers [batch].

  Args:
    value: integers of shape [batch].
    batch: number of images.
    num_classes: they must be below it; None: not known.
    name: of the argument.
  """
  value = _array(value)
  if value.shape != (batch,) or not jnp.issubdtype(value.dtype, jnp.integer):
    raise ValueError(f'{name} must be integers of shape ({batch},), got {value.dtype} of shape '
                     f'{value.shape}')
  if concrete(value):
    known = np.asarray(value)
    if num_classes is None:
      check(name, known, known >= 0, 'at least 0')
    else:
      check(name, known, (known >= 0) & (known < num_classes), f'in [0, {num_classes - 1}]')
  return value


def radius(value, batch=None, *, name='epsilon', finite=True):
  """A radius in pixel units, or another length, as float32.

  Args:
    value: >= 0, scalar or [batch].
    batch: number of images; None: not known.
    name: of the argument.
    finite: whether inf is refused.
  """
  value = numbers(name, value)
  if value.ndim > 1 or (value.ndim == 1 and batch is not None and value.shape != (batch,)):
    raise ValueError(f'{name} must be a number or of shape ({batch or "batch"},), got shape '
                     f'{value.shape}')
  if concrete(value):
    known = np.asarray(value)
    check(name, known, (known >= 0) & ~(finite & np.isinf(known)),
          f'{"finite and " if finite else ""}at least 0')
  return jnp.asarray(value, jnp.float32)


def diameter(norm, shape):
  """How far two images of a shape can be from each other in a norm: 1, sqrt(d) or d, d pixels.

  Raises:
    ValueError: an unknown norm.
  """
  pixels = math.prod(shape)
  lengths = {'linf': 1., 'l2': math.sqrt(pixels), 'l1': float(pixels)}
  if norm not in lengths:
    raise ValueError(f'norm must be one of {", ".join(lengths)}, got {norm!r}')
  return lengths[norm]


def noise(value, images):
  """Noise of a smoothed classifier, [num_noise, *images.shape]; None stays None."""
  if value is None:
    return None
  value = _array(value)
  if value.ndim != images.ndim + 1 or value.shape[1:] != images.shape or not len(value):
    raise ValueError(f'noise must have shape [num_noise, {", ".join(map(str, images.shape))}], got '
                     f'{list(value.shape)}')
  return value


def logits(value, batch):
  """Returns `value`, logits or their `jax.ShapeDtypeStruct`, if they are float [batch, classes]."""
  shape, dtype = getattr(value, 'shape', None), getattr(value, 'dtype', None)
  if (shape is None or len(shape) != 2 or shape[0] != batch or shape[1] < 2 or
      not jnp.issubdtype(dtype, jnp.floating)):
    got = type(value).__name__ if shape is None else f'{dtype} of shape {shape}'
    raise ValueError(f'logits_fn must return floating point logits of shape ({batch}, classes), at '
                     f'least 2 classes, for {batch} images, got {got}')
  return value


def num_classes(logits_fn, images):
  """The number of classes, from the shape of the logits alone.

  Args:
    logits_fn: images -> logits.
    images: [batch, ...], or their `jax.ShapeDtypeStruct`.

  Raises:
    ValueError: it computes no logits of such images, as of a single one without a batch's axis.
  """
  try:
    found = jax.eval_shape(logits_fn, images)
  except UserError:
    raise
  except jax.errors.JAXTypeError as error:
    raise ValueError('logits_fn must be a function that JAX can trace, of jax.numpy and without '
                     f'branches on values ({type(error).__name__})') from error
  except Exception as error:  # Whatever a network raises.
    reason = ' '.join(str(error).split())[:200]
    raise ValueError(f'logits_fn does not take images of shape {images.shape}, a batch of '
                     f'{len(images)} of shape {images.shape[1:]} ({type(error).__name__}: {reason})'
                     ) from error
  return logits(found, len(images)).shape[-1]


def attacked(victim, x, y, *, epsilon, targets=None, any_radius=False, norm=None):
  """The arguments of an attack, checked.

  Args:
    victim: `smoothing.Victim`.
    x, y, epsilon: images, labels and radius.
    targets: None, or [batch] int.
    any_radius: whether epsilon may be inf, as of attacks that look for the closest image.
    norm: in which epsilon has to be at most the diameter of the box of images; None: any length.

  Returns:
    (images, labels, epsilon, targets). Where labels, targets or epsilon are traced, images of
    examples for which one of them is out of range are NaN.
  """
  x = images(x)
  noise(victim.noise, x)
  known = victim.num_classes(x)
  y = labels(y, len(x), num_classes=known)
  epsilon = radius(epsilon, len(x), finite=not any_radius)
  if norm is not None and concrete(epsilon):
    longest = diameter(norm, x.shape[1:])
    check('epsilon', np.asarray(epsilon), np.asarray(epsilon) <= longest * (1 + TOLERANCE),
          f'at most {longest:.4g} in {norm}, as pixels are in [0, 1]')
  if targets is not None:
    targets = labels(targets, len(x), num_classes=known, name='targets')
  valid = True
  for classes in (y, targets):
    if classes is not None and not concrete(classes):
      valid &= (classes >= 0) & (classes < known)
  if not concrete(epsilon):
    valid &= (epsilon >= 0) & (any_radius | jnp.isfinite(epsilon))
  if valid is not True:
    valid = jnp.broadcast_to(valid, (len(x),)).reshape((-1,) + (1,) * (x.ndim - 1))
    x = jnp.where(valid, x, jnp.nan)
  return x, y, epsilon, targets


def batch(value):
  """A `types.Batch`, checked: labels, index and mask [batch] beside its images."""
  size = len(images(value.images, name='batch.images'))
  for field in ('labels', 'index'):
    labels(getattr(value, field), size, name=f'batch.{field}')
  if np.shape(value.mask) != (size,):
    raise ValueError(f'batch.mask must have shape ({size},), got {np.shape(value.mask)}')
  return value


def concrete(value):
  """Whether the values of an array are known, as they are not within jit, grad or vmap."""
  return not isinstance(value, jax.core.Tracer)


def _array(value):
  # Not jnp.asarray, which makes a traced array of a known one within jit.
  return value if isinstance(value, jax.Array) else np.asarray(value)
