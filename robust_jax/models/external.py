"""Classifiers that are functions of the user's own: 'package.module:function'."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from robust_jax import named
from robust_jax.errors import UserError
from robust_jax.types import LogitsFn


class External(nn.Module):
  """A function as a module without parameters.

  Attributes:
    function: see `load`.
  """

  num_classes: int
  function: str
  # The function normalises images itself.
  takes_pixels = True

  def __call__(self, images, *, train):
    """Images [batch, height, width, channel] in [0, 1] -> logits; `train` changes nothing."""
    del train
    return load(self.function)(images)


def external(num_classes, *, function: str = ''):
  """Any function of images in [0, 1] to logits, to attack and certify; it cannot be trained.

  Args:
    function: 'package.module:function', a function that JAX can trace.
  """
  return External(num_classes, function)


def load(target) -> LogitsFn:
  """The function, images [batch, height, width, channel] in [0, 1] -> logits, that a string names.

  Args:
    target: 'package.module:function', as of `named.load`.

  Raises:
    UserError: as `named.load`.
  """
  return named.load(target, 'config.model.function')


def check(logits_fn, image_shape, num_classes, *, target='the function'):
  """Raises UserError unless `logits_fn` maps float32 images to logits, as seen by JAX's tracing.

  Nothing is computed. What cannot be traced, such as NumPy or PyTorch, cannot be compiled or
  differentiated either.

  Args:
    logits_fn: what `load` returns.
    image_shape: (height, width, channel).
    num_classes: number of logits.
    target: what the error calls the function.

  Raises:
    UserError: it cannot be traced; or two images do not give logits [2, num_classes] of a
      floating-point type.
  """
  images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
  try:
    logits = jax.eval_shape(logits_fn, images)
  except Exception as error:  # Anything may happen in a user's function.
    # Of a tracer that is taken for an array of another library.
    hint = ('; it must be traceable by JAX: of jax.numpy, not of NumPy or PyTorch'
            if isinstance(error, (TypeError, IndexError)) or 'Tracer' in str(error) else '')
    raise UserError(f'{target} raises {named.line(error)} on images {_shape(images)}{hint}'
                    ) from error
  if not (isinstance(logits, jax.ShapeDtypeStruct) and logits.shape == (2, num_classes)
          and jnp.issubdtype(logits.dtype, jnp.floating)):
    raise UserError(f'{target} must map images {_shape(images)} to logits float32[2, '
                    f'{num_classes}], got {_shape(logits)}')


def _shape(value):
  if isinstance(value, jax.ShapeDtypeStruct):
    return f'{value.dtype}{list(value.shape)}'
  return f'a {type(value).__name__}'
