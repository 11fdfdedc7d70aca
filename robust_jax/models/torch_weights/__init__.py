"""Weights that were trained in PyTorch, for the Flax modules of `robust_jax.models`.

`files` reads checkpoints without PyTorch and without running what is in them; `naming` knows what
PyTorch's code bases call the layers of our networks.
"""

from typing import Any, NamedTuple

from robust_jax.models.torch_weights.files import read
from robust_jax.models.torch_weights.naming import convert, normalisation, num_classes

__all__ = ['Loaded', 'convert', 'load', 'normalisation', 'num_classes', 'read']


class Loaded(NamedTuple):
  """A network of a PyTorch checkpoint.

  Attributes:
    variables: {'params', 'batch_stats'}, as `models.init` returns them.
    normalisation: (mean, std) that the file has, a number for each channel; None if it has none.
    num_classes: rows of the last layer.
  """

  variables: dict[str, Any]
  normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None
  num_classes: int


def load(path, model, image_shape, *, part=None):
  """A network from a PyTorch checkpoint.

  Args:
    path: see `read`.
    model: a module from `models.create`; its number of classes may be another than the file's.
    image_shape: (height, width, channel).
    part: which network of a file with several, see `read` and `convert`.

  Returns:
    `Loaded`. `models.logits_fn(model, variables, mean=mean, std=std)` is the classifier.

  Raises:
    UserError: the file cannot be read, or its arrays are not those of the model.
  """
  arrays = read(path, part)
  classes = num_classes(arrays, model, image_shape, path=path, part=part)
  variables = convert(arrays, model.clone(num_classes=classes), image_shape, path=path, part=part)
  return Loaded(variables, normalisation(arrays, path=path), classes)
