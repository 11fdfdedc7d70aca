"""The tasks through robust_jax's public seams, put together as the launcher does it."""

import functools
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.work import MODELS, Job, batch
from robust_jax import attacks, backend, certification, keys, losses, models, training
from robust_jax.devices import parallel
from robust_jax.devices.choose import choose_devices
from robust_jax.models import torch_weights
from robust_jax.training import methods
from robust_jax.types import Batch


def build(work, contestant, weights, device):
  """A `Job` of ours.

  Args:
    work: the `Work`.
    contestant: the `Contestant`.
    weights: file of a PyTorch state_dict, or None for a fresh initialisation.
    device: 'cpu' or 'gpu'.
  """
  devices = prepare(contestant, device, work)
  shape = MODELS[work.model]
  dtype = 'bfloat16' if contestant.precision == 'bfloat16' else 'float32'
  model = models.create(work.model, shape.num_classes, dtype=dtype)
  network = models.network(model, mean=shape.mean, std=shape.std, axis_name=parallel.AXIS)
  variables = (models.init(keys.root(0), model, shape.image_shape) if weights is None
               else load(weights, work.model, model))
  make = {'pgd10': pgd, 'train': train, 'smoothadv': train, 'certify': certify}[work.task]
  call, check = make(work, network, variables, devices)
  results = []

  def start():
    results[:] = [call()]

  memory = lambda: max(d.memory_stats()['peak_bytes_in_use'] for d in devices)
  return Job(start, lambda: jax.block_until_ready(results), check,
             memory if device == 'gpu' else lambda: None, about(devices))


def prepare(contestant, device, work):
  """Devices as the launcher chooses them, and the precision of matrix products."""
  backend.tune()
  devices = choose_devices(work.num_devices, [work.batch])
  if device == 'gpu' and contestant.precision == 'float32':
    jax.config.update('jax_default_matmul_precision', 'highest')
  return devices


def about(devices):
  """Devices and flags, for the results file."""
  return {'devices': len(devices), 'device_kind': devices[0].device_kind,
          **{name: os.environ.get(name, '')
             for name in ('XLA_FLAGS', 'GLIBC_TUNABLES', 'LD_PRELOAD', 'MALLOC_CONF')}}


def load(path, name, model):
  """The variables in a PyTorch state_dict."""
  arrays = torch_weights.read(path)
  if name != 'lenet':
    return torch_weights.convert(arrays, model, MODELS[name].image_shape, path=path)
  arrays = {key.partition('.')[2]: array for key, array in arrays.items()}
  # PyTorch flattens [channel, row, column], we [row, column, channel].
  dense = arrays['dense.weight'].reshape(500, 50, 4, 4).transpose(0, 2, 3, 1).reshape(500, 800)
  kernels = {'conv1': arrays['conv1.weight'].transpose(2, 3, 1, 0),
             'conv2': arrays['conv2.weight'].transpose(2, 3, 1, 0),
             'dense': dense.T, 'logits': arrays['logits.weight'].T}
  params = {layer: {'kernel': np.ascontiguousarray(kernel), 'bias': arrays[f'{layer}.bias']}
            for layer, kernel in kernels.items()}
  return {'params': params, 'batch_stats': {}}


def logits(network, variables, images, devices):
  forward = parallel.map_rows(lambda logits_fn, x: logits_fn(x), devices)
  # Each row once for every device, so that they divide.
  copies = np.repeat(images, len(devices), axis=0)
  return {'logits': forward(network.eval_logits(variables), copies)[::len(devices)]}


def pgd(work, network, variables, devices):
  """PGD in linf from the images themselves, as the attack stage runs it."""
  images, labels = batch(work)
  rows = (images, labels, np.arange(len(images)))
  logits_fn = network.eval_logits(variables)

  def attack(replicated, rows, num_steps=work.num_steps):
    key, logits_fn, epsilon = replicated
    images, labels, index = rows
    return attacks.pgd_attack(
        keys.fold_in(key, index), logits_fn, images, labels, epsilon=epsilon, num_steps=num_steps,
        step_size=2.5 * epsilon / work.num_steps).images

  find = parallel.map_rows(attack, devices)
  first_step = parallel.map_rows(functools.partial(attack, num_steps=1), devices)
  replicated = (keys.root(0), logits_fn, work.epsilon)

  def check():
    adversarial = find(replicated, rows)
    found = logits(network, variables, adversarial, devices)['logits']
    return {**logits(network, variables, images, devices),
            'first_step': first_step(replicated, rows), 'adversarial': adversarial,
            'adversarial_loss': np.mean(losses.cross_entropy(found, labels))}

  return lambda: find(replicated, rows), check


def train(work, network, variables, devices):
  """One step of cross-entropy training ('train') or of SmoothAdv, as the train stage runs it."""
  images, labels = batch(work)
  rows = Batch(images, labels, np.arange(len(images), dtype=np.int32),
               np.ones(len(images), np.float32))
  optimizer = training.OPTIMIZERS['sgd'](0.01, momentum=0.9, weight_decay=1e-4)

  @functools.cache
  def step(sigma):
    return parallel.map_train_step(
        functools.partial(training.train_step, network=network, optimizer=optimizer,
                          method=method(work, sigma), steps_per_epoch=1000,
                          axis_name=parallel.AXIS), devices)

  def call():
    nonlocal state
    state, sums = step(work.sigma)(state, rows, key)
    return sums

  def check():
    if not work.checks_training:
      return {}
    start = parallel.replicate(training.create_state(variables, optimizer), devices)
    trained, sums = step(0.)(start, rows, key)
    return {**logits(network, variables, images, devices),
            'loss': np.asarray(sums['loss'] / sums['count']),
            'trained_logits': logits(network, trained.variables, images, devices)['logits']}

  state = parallel.replicate(training.create_state(variables, optimizer), devices)
  key = keys.root(0)
  return call, check


def method(work, sigma):
  """The training method of a Work: standard, or SmoothAdv with the PGD of Salman et al. 2019."""
  if work.task == 'train':
    return methods.standard
  attack = functools.partial(attacks.pgd_attack, norm='l2', num_steps=work.num_steps,
                             step_ratio=2., order='box_then_ball')
  return functools.partial(methods.smoothadv, attack=attack, epsilon=work.epsilon, sigma=sigma,
                           num_noise=work.num_noise)


def certify(work, network, variables, devices):
  """Votes of the noisy copies of some images, as the certify stage counts them."""
  images, _ = batch(work)
  logits_fn = network.eval_logits(variables)
  count = certification.sharded_count(devices)

  def votes(sigma):
    return np.asarray(count(keys.root(0), logits_fn, images, np.arange(len(images)), 0,
                            work.num_draws, sigma=sigma, batch_size=work.batch))

  return lambda: votes(work.sigma), lambda: {
      **logits(network, variables, images, devices), 'counts': votes(0.)}


def peak(contestant, device, seconds):
  """(FLOP/s of a large matrix product, bytes/s of a large copy, read and written)."""
  if device == 'gpu' and contestant.precision == 'float32':
    jax.config.update('jax_default_matmul_precision', 'highest')
  size = 2048 if device == 'cpu' else 8192
  dtype = jnp.bfloat16 if contestant.precision == 'bfloat16' else jnp.float32
  a, b = (jax.random.uniform(jax.random.key(seed), (size, size), dtype) for seed in range(2))
  source = jnp.ones(2**24 if device == 'cpu' else 2**28)
  # Adding, because a program that only copies would be optimised away.
  copy = jax.jit(lambda x: x + 1)
  return (2 * size**3 / best(lambda: jnp.dot(a, b), seconds),
          2 * source.nbytes / best(lambda: copy(source), seconds))


def best(function, seconds):
  """The shortest time of a call but the first, in seconds."""
  function().block_until_ready()
  times, begun = [], time.perf_counter()
  while not times or time.perf_counter() - begun < seconds:
    start = time.perf_counter()
    function().block_until_ready()
    times.append(time.perf_counter() - start)
  return min(times)
