"""Classifiers that are functions of the user's own: 'package.module:function'."""

import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen as nn

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
  """The function that a string names.

  Args:
    target: 'package.module:function'. The module is imported as Python would import it: under
      `python -m`, and in a notebook, from the current folder too.

  Returns:
    The function, images [batch, height, width, channel] in [0, 1] -> logits [batch, classes].

  Raises:
    UserError: the string is not of that form; the module is not there, or raises when imported;
      it has no such attribute, or one that cannot be called.
  """
  module_name, _, name = target.partition(':')
  if not (module_name and name):
    raise UserError(f"config.model.function must be 'package.module:function', got {target!r}")
  given = f'config.model.function is {target!r}'
  try:
    module = importlib.import_module(module_name)
  except (Exception, SystemExit) as error:  # Anything may happen in a user's module.
    raise UserError(f'{given}, but importing {module_name} raises {_line(error)}') from error
  if not hasattr(module, name):
    raise UserError(f'{given}, but {module_name} has no {name!r}')
  function = getattr(module, name)
  if not callable(function):
    raise UserError(f'{given}: it must be a function, got a {type(function).__name__}')
  return function


def source(target):
  """The file of the module that `target` names, as a Path; None if there is none."""
  file = getattr(sys.modules.get(target.partition(':')[0]), '__file__', None)
  return Path(file) if file else None


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
    raise UserError(f'{target} raises {_line(error)} on images {_shape(images)}; it must be '
                    'traceable by JAX: of jax.numpy, not of NumPy or PyTorch') from error
  if not (isinstance(logits, jax.ShapeDtypeStruct) and logits.shape == (2, num_classes)
          and jnp.issubdtype(logits.dtype, jnp.floating)):
    raise UserError(f'{target} must map images {_shape(images)} to logits float32[2, '
                    f'{num_classes}], got {_shape(logits)}')


def _shape(value):
  if isinstance(value, jax.ShapeDtypeStruct):
    return f'{value.dtype}{list(value.shape)}'
  return f'a {type(value).__name__}'


def _line(error):
  """The type and the first line of an error."""
  first = next(iter(str(error).strip().splitlines()), '')
  return f'{type(error).__name__}: {first}' if first else type(error).__name__
