"""Which images of a split a stage looks at, and in which batches."""

from robust_jax import data


def chosen(run, settings):
  """The indices 0, stride, 2 stride, ... of the test split that a section of the config asks for.

  The first num_images of them unless 0; of these, with shard (I, N), every N-th from number I on.
  """
  indices = range(0, run.test_data.num_examples, settings.stride)
  number, total = run.shard
  return list((indices[:settings.num_images] if settings.num_images else indices)[number::total])


def even_size(num_images, batch_size, num_devices):
  """Rows of a batch, so that as few batches as may be are as full as may be: [num_images] in all.

  Of one size, which is compiled once, and a multiple of the devices; what is left over is padding,
  which costs as much as images do.
  """
  num_batches = max(-(-num_images // batch_size), 1)
  return -(-num_images // (num_batches * num_devices)) * num_devices


def batches(dataset, indices, batch_size, *, pad):
  """Batches of the given examples; the last is padded (see `types.Batch`) or smaller."""
  for begin in range(0, len(indices), batch_size or 1):
    yield data.take(dataset, indices[begin:begin + batch_size], batch_size if pad else None)
