"""Memory that the train step of an ImageNet experiment needs on one device, by XLA's CPU compiler.

  python -m benchmarks.memory [--experiment=smoothadv --rows=1,2,4 --noises=1,2,4]

Nothing is computed, and no images are needed. Of a device: the state and the rows that go in, the
state that comes out, and what the step has in between ('temporary'). JAX's plain layers are
compiled, as on accelerators, whose compilers may need more or less.
"""

import argparse
import functools
import os

import jax
import numpy as np

from configs import imagenet
from robust_jax import models, training
from robust_jax.config import experiment, sections
from robust_jax.types import Batch


def step_memory(run, rows):
  """The memory of a step of `rows` images on one device.

  Args:
    run: config.experiment.Run.
    rows: images of a batch.

  Returns:
    {'in', 'out', 'temporary'}: bytes.
  """
  shape = run.test_data.image_shape
  optimizer = experiment.bind('optimizer', run.components['optimizer'])(lambda step: 0.1)
  network = models.network(run.model, mean=run.test_data.mean, std=run.test_data.std)
  array = jax.ShapeDtypeStruct
  state = jax.eval_shape(functools.partial(training.create_state, optimizer=optimizer),
                         models.shapes(run.model, shape))
  batch = Batch(images=array((rows, *shape), np.float32), labels=array((rows,), np.int32),
                index=array((rows,), np.int32), mask=array((rows,), np.float32))
  step = functools.partial(training.train_step, network=network, optimizer=optimizer,
                           method=run.method, steps_per_epoch=1000)
  found = jax.jit(step).lower(state, batch, jax.random.key(0)).compile().memory_analysis()
  return {'in': found.argument_size_in_bytes, 'out': found.output_size_in_bytes,
          'temporary': found.temp_size_in_bytes}


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--experiment', default='smoothadv')
  parser.add_argument('--rows', default='1,2,4', help='images of a device')
  parser.add_argument('--noises', default='1,2,4', help='of a method that draws them')
  args = parser.parse_args()
  os.environ['JAX_PLATFORMS'], os.environ['ROBUST_JAX_CPU'] = 'cpu', 'plain'
  for noises in map(int, args.noises.split(',')):
    for rows in map(int, args.rows.split(',')):
      config = imagenet.get_config(args.experiment)
      if 'num_noise' in config.method:
        config.method.num_noise = noises
      run = experiment.build(sections.resolve(config), jax.devices()[:1], images=False)
      found = step_memory(run, rows)
      print(f'{rows} images, {noises} noises: ' + ', '.join(
          f'{name} {value / 2**20:,.1f} MiB' for name, value in found.items()), flush=True)


if __name__ == '__main__':
  main()
