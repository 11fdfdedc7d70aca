"""Which images of a split a stage looks at, and in which batches."""

from robust_jax import data


def chosen(dataset, stride, num_images):
  """The indices 0, stride, 2 stride, ... of a split; the first num_images of them unless 0."""
  indices = range(0, dataset.num_examples, stride)
  return list(indices[:num_images] if num_images else indices)


def batches(dataset, indices, batch_size, *, pad):
  """Batches of the given examples; the last is padded (see `types.Batch`) or smaller."""
  for begin in range(0, len(indices), batch_size):
    yield data.take(dataset, indices[begin:begin + batch_size], batch_size if pad else None)
