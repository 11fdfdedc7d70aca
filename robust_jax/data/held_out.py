"""A part of the training images that is not trained on, by which a network is chosen."""

import dataclasses

import numpy as np

from robust_jax.data import lazy
from robust_jax.errors import UserError


def hold_out(dataset, share):
  """Divides a dataset at random, but always in the same way.

  Which images are held out depends on their number alone, and not on a seed: those that one run
  holds out no other trains on, so that a network may be trained further with another seed.

  Args:
    dataset: a Dataset.
    share: of the examples that is held out, in (0, 1), or their number, from 1 on.

  Returns:
    (rest, held out), both a Dataset; an example's index is its position in its part.

  Raises:
    UserError: a part is empty, or the number is not whole.
  """
  total = dataset.num_examples
  count = round(share * total) if share < 1 else share
  if count != int(count) or not 0 < count < total:
    raise UserError(f'config.data.validation must be a share in (0, 1), or a whole number of the '
                    f'{total} training images that leaves some, got {share:g}')
  order = np.random.default_rng(total).permutation(total)
  rest, held_out = np.sort(order[int(count):]), np.sort(order[:int(count)])
  return tuple(dataclasses.replace(dataset, images=lazy.part(dataset.images, indices),
                                   labels=lazy.part(dataset.labels, indices))
               for indices in (rest, held_out))
