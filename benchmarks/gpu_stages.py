"""The stages of `benchmarks.gpu` that are no benchmark: python -m benchmarks.gpu_stages NAME ...

The whole path of an experiment by the library's functions, without the launcher and what it needs.
"""

import functools
import shutil
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.work import MODELS
from robust_jax import analysis, attacks, bounds, certification, keys, losses, models, training
from robust_jax import workdir as workdirs
from robust_jax.certification import log, rules
from robust_jax.devices import parallel
from robust_jax.training import methods
from robust_jax.types import Batch
from robust_jax.workdir import checkpoint

SIGMA = 0.5
_L2_STEPS = dict(norm='l2', num_steps=2, step_ratio=2., random_start=False, order='box_then_ball')
SMOOTHADV = functools.partial(
    methods.smoothadv, sigma=SIGMA, epsilon=1., num_noise=2, epsilon_warmup_epochs=10,
    attack=functools.partial(attacks.pgd_attack, **_L2_STEPS))
# Batch, epochs and boundaries of Salman et al. 2019 (SmoothAdv) and Cohen et al. 2019.
TRAININGS = {
    'gaussian': (functools.partial(methods.gaussian, sigma=SIGMA), 400, 90, (30, 60)),
    'smoothadv': (SMOOTHADV, 256, 150, (50, 100)),
}
# Pixels that a crop may move by, as torchvision's RandomCrop(32, padding=4).
_PADDING = 4
# The share of a stage's time for training, the rest being for certificates.
_TRAINING = 0.75


def main(name, out, seconds, data, quick):
  deadline = time.monotonic() + float(seconds)
  left = Results(Path(out) / f'{name}.json')
  arrays = load(data, quick)
  if name == 'path':
    path(arrays, left, Path(out), quick)
  else:
    train_and_certify(name, arrays, left, Path(out), deadline, quick)


class Results:
  """What a stage has found so far, a JSON file that is whole at any time."""

  def __init__(self, path):
    self.path, self.found = path, {}
    workdirs.write_json(path, {})

  def add(self, **found):
    self.found |= found
    print(found, flush=True)
    workdirs.write_json(self.path, self.found)


def load(data, quick):
  """{'train_images': uint8, ...}; made up without a file."""
  if data:
    arrays = dict(np.load(data))
  else:
    rng = np.random.default_rng(0)
    arrays = {f'{split}_images': rng.integers(0, 256, (number, 32, 32, 3), np.uint8)
              for split, number in (('train', 4096), ('test', 512))}
    arrays |= {f'{split}_labels': rng.integers(0, 10, len(arrays[f'{split}_images']), np.int32)
               for split in ('train', 'test')}
  if quick:
    arrays = {name: value[:64] for name, value in arrays.items()}
  return arrays


def network_of(axis_name=None):
  """(the Flax module, Network) of ResNet-20 for CIFAR-10."""
  model, shape = models.create('resnet20', 10), MODELS['resnet20']
  return model, models.network(model, mean=shape.mean, std=shape.std, axis_name=axis_name)


# The path.


def path(arrays, left, out, quick):
  """Everything once, small; raises where something is not as it has to be."""
  devices = jax.devices()
  steps, rows = (2, 8) if quick else (20, 128)
  rows *= len(devices)
  left.add(devices=[device.device_kind for device in devices], jax=jax.__version__)
  step, fresh = smoothadv_step(devices)
  states = {(seed, whole): trained(step, fresh, arrays, devices, out / 'path', seed, steps, rows,
                                   whole) for seed in (0, 1) for whole in (True, False)}
  same = [equal(states[seed, True].params, states[seed, False].params) for seed in (0, 1)]
  left.add(resumed_bit_equal=same,
           seeds_differ=not equal(states[0, True].params, states[1, True].params))
  variables = states[0, True].variables
  _, network = network_of()
  logits_fn = network.eval_logits(variables)
  number = 4 if quick else 64
  images = np.float32(arrays['test_images'][:number]) / 255
  # Labels that the network gives, so that there is something to lose.
  labels = np.asarray(losses.predicted(logits_fn(images)))
  left.add(**beside_cpu(network, variables, images))
  left.add(attacks=attack(logits_fn, images, labels, quick))
  left.add(certificates=certify(logits_fn, images[:8], devices, quick))
  left.add(bounds=bound(logits_fn, images[:2], labels[:2]))
  failed = [name for name, value in (
      ('resumed_bit_equal', all(same)), ('seeds_differ', left.found['seeds_differ']),
      ('certificates', left.found['certificates']['replayed']),
      ('bounds', left.found['bounds']['crossings'] == 0)) if not value]
  if failed:
    sys.exit(f'not as it has to be: {", ".join(failed)}')


def smoothadv_step(devices):
  """(a step of SmoothAdv over devices, seed -> the state before the first)."""
  model, network = network_of(parallel.AXIS)
  optimizer = training.OPTIMIZERS['sgd'](0.1, momentum=0.9, weight_decay=1e-4)
  step = parallel.map_train_step(
      functools.partial(training.train_step, network=network, optimizer=optimizer,
                        method=SMOOTHADV, steps_per_epoch=1, axis_name=parallel.AXIS), devices)
  return step, lambda seed: training.create_state(
      models.init(keys.root(seed), model, (32, 32, 3)), optimizer)


def trained(step, fresh, arrays, devices, folder, seed, steps, rows, whole):
  """The state after 2 * steps; not `whole`: with a checkpoint, saved and restored, between."""
  state = parallel.replicate(fresh(seed), devices)
  order = np.random.default_rng(seed).integers(0, len(arrays['train_images']), (2 * steps, rows))
  for number, index in enumerate(order):
    if number == steps and not whole:
      shutil.rmtree(folder, ignore_errors=True)
      with checkpoint.manager(folder) as checkpoints:
        checkpoint.save(checkpoints, jax.device_get(state), {})
      state = parallel.replicate(checkpoint.restore(folder, fresh(seed))[0], devices)
    images = np.float32(arrays['train_images'][index]) / 255
    batch = Batch(images, arrays['train_labels'][index], np.arange(rows, dtype=np.int32),
                  np.ones(rows, np.float32))
    state, sums = step(state, batch, keys.root(seed))
    loss = float(np.ravel(sums['loss'] / sums['count'])[0])
    if not np.isfinite(loss):
      sys.exit(f'step {number}: the loss is {loss}')
  return jax.device_get(state)


def equal(a, b):
  """Whether two pytrees have the same bits."""
  return all(jax.tree.leaves(jax.tree.map(
      lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)))


def beside_cpu(network, variables, images):
  """Largest differences of logits from this machine's processor, over the largest logit."""
  found = {}
  with jax.default_device(jax.devices('cpu')[0]):
    expected = np.asarray(network.eval_logits(variables)(jnp.asarray(images)))
  for precision in ('highest', 'default'):
    with jax.default_matmul_precision(precision):
      logits = np.asarray(jax.jit(lambda x: network.eval_logits(variables)(x))(images))
    found[precision] = float(np.abs(logits - expected).max() / np.abs(expected).max())
  return {'logits_beside_cpu': found}


def attack(logits_fn, images, labels, quick):
  """Robust accuracy by PGD and two parts of AutoAttack, linf 2/255."""
  found = attacks.pgd_attack(keys.root(0), logits_fn, images, labels, epsilon=2 / 255,
                             num_steps=2 if quick else 20)
  suite = attacks.autoattack(keys.root(0), logits_fn, images, labels, epsilon=2 / 255,
                             version='apgd-ce' if quick else 'apgd-ce,apgd-t')
  return {'pgd': 1 - float(np.mean(found.success)),
          'autoattack': [(part.name, part.robust_accuracy, round(part.seconds, 2))
                         for part in suite.parts], 'flags': sorted(suite.flags)}


def certify(logits_fn, images, devices, quick):
  """Certificates by `sequential`; drawn for once more on one device, and replayed from counts."""
  rule = certification.RadiusGrid(sigma=SIGMA, n=200 if quick else 10_000, alpha=0.01,
                                  n0=20 if quick else 100, batch_size=64 * len(devices))
  found, again = (certification.certify_by_rule(
      keys.root(0), logits_fn, images, rule, count=certification.sharded_count(chosen))
      for chosen in (devices, devices[:1]))
  replayed = rule.conclude(rules.replay(rule, found.looks))
  return {'radius': found.radius.tolist(), 'draws': found.draws.tolist(),
          'same_on_one_device': bool(np.array_equal(found.counts, again.counts)),
          'replayed': bool(np.array_equal(np.asarray(replayed.radius), found.radius))}


def bound(logits_fn, images, labels):
  """Whether PGD crosses the margins' lower bounds of CROWN-IBP; products in float32."""
  epsilon = 1e-4
  with jax.default_matmul_precision('highest'):
    lower = bounds.crown(logits_fn, images, epsilon, labels=labels, method='crown_ibp')
    found = attacks.pgd_attack(keys.root(0), logits_fn, images, labels, epsilon=epsilon,
                               loss='margin', num_steps=10)
    logits = np.asarray(logits_fn(found.images))
  margins = logits[np.arange(len(labels)), labels][:, None] - logits
  return {'crossings': int((margins < np.asarray(lower)).sum()),
          'finite': bool(np.isfinite(lower).all())}


# Trainings on CIFAR-10.


def train_and_certify(name, arrays, left, out, deadline, quick):
  """A network by the schedule of `TRAININGS`, and certificates of test images, in time."""
  method, batch_size, num_epochs, boundaries = TRAININGS[name]
  if quick:
    batch_size, num_epochs = 8, 1
  begun = time.monotonic()
  state = train(method, arrays, batch_size, num_epochs, boundaries, left,
                begun + _TRAINING * (deadline - begun), quick)
  _, network = network_of()
  logits_fn = network.eval_logits(state.variables)
  folder = out / name
  shutil.rmtree(folder, ignore_errors=True)
  with checkpoint.manager(folder) as checkpoints:
    checkpoint.save(checkpoints, jax.device_get(state), {})
  rule = certification.RadiusGrid(sigma=SIGMA, n=200 if quick else 100_000,
                                  alpha=0.05 if quick else 0.001, batch_size=8 if quick else 4000)
  images = np.float32(arrays['test_images']) / 255
  examples = (certification.Example(index, int(arrays['test_labels'][index]), images[index])
              for index in spread(len(images)))
  settings = {**rule.settings(), 'num_images': len(images), 'training': name}
  with log.open_for_append(folder / 'certify', settings,
                           workdirs.environment(jax.devices())) as writer:
    for each in certification.certify_stream(
        keys.root(1), logits_fn, examples, rule, pool=4 if quick else 200,
        count=certification.sharded_count(jax.devices())):
      if each.certificate is not None:
        writer.write(log.records(each.index, each.labels, each.certificate, each.seconds))
      if time.monotonic() > deadline:
        break
  certified = log.read(folder / 'certify.jsonl')
  radii = rule.grid.tolist()
  accuracy = [analysis.certified_accuracy(certified, radius) for radius in radii]
  left.add(radii=radii, certified_images=len(certified.idx), certified=[
      (round(float(value), 4), *(round(float(end), 4) for end in analysis.accuracy_interval(
          value, len(certified.idx)))) for value in accuracy],
           draws_an_image=float(analysis.mean_draws(log.read_votes(folder / 'certify.jsonl'))))


def spread(number):
  """0, ..., number - 1 in an order of which every beginning is spread over all."""
  bits = max(1, (number - 1).bit_length())
  order = (int(f'{place:0{bits}b}'[::-1], 2) for place in range(2**bits))
  return [index for index in order if index < number]


def train(method, arrays, batch_size, num_epochs, boundaries, left, deadline, quick):
  """The TrainState at the end; fewer epochs, the boundaries moved, where all would be too many."""
  model, network = network_of()
  images, labels = jnp.asarray(arrays['train_images']), jnp.asarray(arrays['train_labels'])
  steps_per_epoch = len(images) // batch_size
  variables = models.init(keys.root(0), model, images.shape[1:])

  def prepare(epochs):
    """(the compiled step, the first state) of a schedule of so many epochs."""
    schedule = training.SCHEDULES['step'](
        steps_per_epoch=steps_per_epoch, num_epochs=epochs, learning_rate=0.1,
        boundaries=tuple(round(boundary * epochs / num_epochs) for boundary in boundaries))
    optimizer = training.OPTIMIZERS['sgd'](schedule, momentum=0.9, weight_decay=1e-4)
    one_step = functools.partial(training.train_step, network=network, optimizer=optimizer,
                                 method=method, steps_per_epoch=steps_per_epoch)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, images, labels, index):
      root = keys.root(0)
      crop_keys = keys.fold_in(keys.fold_in(jax.random.fold_in(root, 1), state.step), index)
      cropped = jax.vmap(crop_flip)(crop_keys, images[index].astype(jnp.float32) / 255)
      return one_step(state, Batch(cropped, labels[index], index, jnp.ones(batch_size)), root)

    return step, training.create_state(jax.tree.map(jnp.copy, variables), optimizer)

  def run(step, state, epochs):
    begun, seen = time.monotonic(), 0
    for epoch in range(epochs):
      order = np.random.default_rng((0, epoch)).permutation(len(images)).astype(np.int32)
      for index in order[:steps_per_epoch * batch_size].reshape(-1, batch_size):
        state, sums = step(state, images, labels, jnp.asarray(index))
      loss = float(sums['loss'] / sums['count'])
      seen += steps_per_epoch * batch_size
      if not np.isfinite(loss):
        sys.exit(f'epoch {epoch}: the loss is {loss}')
      left.add(epoch=epoch + 1, loss=round(loss, 4),
               images_a_second=round(seen / (time.monotonic() - begun)))
    return state

  # Compiled, and timed, before the schedule is known.
  step, state = prepare(1)
  state, _ = step(state, images, labels, jnp.arange(batch_size, dtype=jnp.int32))
  jax.block_until_ready(state)
  begun = time.monotonic()
  run(step, state, 1)
  epoch_seconds = time.monotonic() - begun
  # A tenth less, as the step is compiled again.
  fit = max(1, int(0.9 * (deadline - time.monotonic()) / epoch_seconds))
  epochs = min(num_epochs, fit)
  left.add(epochs=epochs, published_epochs=num_epochs, epoch_seconds=round(epoch_seconds, 2))
  return run(*prepare(epochs), epochs)


def crop_flip(key, image):
  """A crop of the padded image, mirrored or not."""
  crop_key, flip_key = jax.random.split(key)
  border = (_PADDING, _PADDING)
  corner = jax.random.randint(crop_key, (2,), 0, 2 * _PADDING + 1)
  crop = jax.lax.dynamic_slice(jnp.pad(image, (border, border, (0, 0))), (*corner, 0), image.shape)
  return jnp.where(jax.random.bernoulli(flip_key), crop[:, ::-1], crop)


if __name__ == '__main__':
  main(*sys.argv[1:])
