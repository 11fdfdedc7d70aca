"""Which images of a split a stage looks at, and in which batches."""

from robust_jax import data


def chosen(dataset, stride, num_images):
  """The indices 0, stride, 2 stride, ... of a split; the first num_images of them unless 0."""
  indices = range(0, dataset.num_examples, stride)
  return list(indices[:num_images] if num_images else indices)


def even_size(num_images, batch_size, num_devices):
  """Rows of a batch, so that as few batches as may be are as full as may be: [num_images] in all.

  Of one size, which is compiled once, and a multiple of the devices; what is left over is padding,
  which costs as much as images do.
  """
  num_batches = max(-(-num_images // batch_size), 1)
  return -(-num_images // (num_batches * num_devices)) * num_devices


def batches(dataset, indices, batch_size, *, pad):
  """Batches of the given examples; the last is padded (see `types.Batch`) or smaller."""
  for begin in range(0, len(indices), batch_size):
    yield data.take(dataset, indices[begin:begin + batch_size], batch_size if pad else None)
