"""The bound stage: which images no perturbation can change, and which PGD does, at some radii.

Of the network itself, without noise and without a probability of error. A line an image and radius
has both sides of the least margin z_y - max_j z_j over the ball: what PGD has found, and what the
bound proves. An attack that succeeds where the bound says that none can contradicts it.
"""

import collections
import contextlib
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from robust_jax import analysis, attacks, bounds, keys, losses, models
from robust_jax.bounds import program, propagate
from robust_jax.devices import parallel
from robust_jax.errors import CrossingError, UserError
from robust_jax.stages import images, weights
from robust_jax.workdir import monitoring, records


def check(run):
  """Raises UserError where the network of a Run cannot be bounded, before it is trained."""
  dtype, shape = run.config['model'].get('dtype', 'float32'), run.test_data.image_shape
  if dtype != 'float32':
    raise UserError(f'config.model.dtype must be float32 for --stages=bound, got {dtype!r}')
  variables = models.shapes(run.model, shape) if run.trainable else {
      'params': {}, 'batch_stats': {}}

  def trace(variables, image):
    logits_fn = run.network.eval_logits(variables)
    if run.bound.exact:
      program.piecewise_linear(logits_fn, shape)
    return bounds.crown(logits_fn, image, 0.1, norm=run.bound.norm, labels=np.zeros(1, int),
                        method=run.bound.method)

  with _mistakes():
    jax.eval_shape(trace, variables, jax.ShapeDtypeStruct((1, *shape), jnp.float32))


def bound(run, workdir):
  """Bounds and attacks test images at each radius, and writes bound.jsonl.

  A line has `idx`, `epsilon`, `label`, the class `predict` of the image and `adversarial` of what
  the attack has found within epsilon, the least `margin` found, the bound `lower` of all (null:
  none, or not computed, as at a smaller radius it was not above 0 already), `verdict`, what it is
  `by`, and `seconds`. A verdict is

  - 'falsified', by 'clean', 'attack' or 'exact': an image within epsilon is misclassified;
  - 'verified', by 'bound' or 'exact': none is;
  - 'unknown' otherwise.
  """
  loaded = weights.load(run, workdir)
  path, radii = Path(workdir) / 'bound.jsonl', len(run.bound.epsilons)
  header = settings(run, loaded)
  entries = records.read(path) if path.exists() else []
  if entries:
    records.check_same(path, entries[0].get('header', {}), header)
  count = collections.Counter(entry.get('idx') for entry in entries)
  # An image whose lines a crash has cut off is judged again.
  entries = records.resume(path, {'header': header}, keep=lambda entry: (
      'header' in entry or count[entry['idx']] == radii))
  done = {entry['idx'] for entry in entries[1:]}
  everything = images.chosen(run, run.bound)
  left = [idx for idx in everything if idx not in done]
  bar = monitoring.bar(desc='bound', initial=len(everything) - len(left), total=len(everything),
                       unit='image')
  for lines in judged(run, loaded.logits_fn, left):
    records.append(path, *lines)
    bar.update(1)
  bar.close()
  print(_result(analysis.read_bound(path)), flush=True)
  return {'origin': loaded.origin, 'num_images': len(everything)}


def settings(run, loaded):
  """All that the lines depend on, for the log's header."""
  own = run.bound._asdict()
  return {**{name: own[name] for name in own if name not in ('batch_size', 'chunk')},
          'seed': run.config['seed'], 'dataset': run.data.name,
          'split': run.test_data.split, 'num_classes': run.test_data.num_classes, **loaded.origin}


def judged(run, logits_fn, indices):
  """Yields of each image of the test split its lines, those of all radii ascending.

  Args:
    run: the Run.
    logits_fn: images -> logits.
    indices: positions in the split.
  """
  # The same for what an interruption has left: logits depend on the shape in their last bits.
  batch_size = images.even_size(len(images.chosen(run, run.bound)), run.bound.batch_size,
                                len(run.devices))
  judge = _judge(run, logits_fn)
  for number, chunk in enumerate(images.batches(run.test_data, indices, batch_size, pad=True)):
    # Bounds are of float32, which a device may have to be asked for.
    with jax.default_matmul_precision('highest'):
      if not number:
        with _mistakes():
          propagate.check_alone(logits_fn, chunk.images)
      found = judge(chunk)
    for row in np.flatnonzero(chunk.mask > 0):
      lines = [_line(chunk, row, epsilon, *(column[row] for column in at_radius))
               for epsilon, at_radius in zip(run.bound.epsilons, found)]
      if run.bound.exact:
        with jax.default_matmul_precision('highest'):
          _go_on(run, logits_fn, chunk.images[row], lines)
      yield lines


def check_crossings(workdir):
  """Raises CrossingError, which names an image, where an attack is within a verified radius."""
  path, attacked = (Path(workdir) / name for name in ('bound.jsonl', 'attack.jsonl'))
  if not path.exists():
    return
  log = analysis.read_bound(path)
  crossed = analysis.bound_crossings(
      log, analysis.read_attack(attacked) if attacked.exists() else None)
  if crossed.any():
    (i, j), number = np.argwhere(crossed)[0], crossed.any(axis=1).sum()
    raise CrossingError(
        f'{path}: image {log.idx[i]} is bounded by a margin of at least {log.lower[i, j]:.4g} '
        f"within {log.header['norm']} {log.epsilons[j]:.4g}, where an attack has found "
        f'{log.margin[i, j]:.4g} or less ({number} of such images): one of the two is wrong')


def _judge(run, logits_fn):
  """batch -> for each radius (clean, adversarial, margin, undefined, lower, seconds), [batch] each.

  `lower` is NaN where it is not computed. What was found within a radius is within larger ones.
  """
  classify, find, least = _mapped(run.bound._replace(epsilons=(), batch_size=0),
                                  tuple(run.devices))

  def judge(batch):
    clean, margin = classify(logits_fn, batch)
    right = (clean == batch.labels) & (batch.mask > 0)
    adversarial, is_open, found = clean, right, []
    for epsilon in np.float32(run.bound.epsilons):
      begun, lower = time.monotonic(), np.full(len(right), np.nan)
      undefined = np.zeros(len(right), bool)
      if right.any():
        classes, margins, undefined = find((run.key('bound'), logits_fn, epsilon), batch)
        adversarial = np.where(right & (adversarial == batch.labels), classes, adversarial)
        margin = np.where(right, np.minimum(margin, margins), margin)
      if is_open.any():
        # The next float32 is not below the radius that is logged.
        larger = np.nextafter(epsilon, np.float32(np.inf))
        lower = np.where(is_open, least((logits_fn, larger), batch), np.nan)
        is_open = lower > 0
      seconds = (time.monotonic() - begun) / max((batch.mask > 0).sum(), 1)
      found.append((clean, adversarial, margin, undefined & right, lower,
                    np.full(len(right), seconds)))
    return found

  return judge


@functools.lru_cache(maxsize=4)
def _mapped(own, devices):
  """(classify, find, least) over devices, compiled once for the stage and its verification.

  Classes and margins of images; the same of attacked ones, and where a gradient was not finite; the
  bound of the least margin.
  """

  def find(replicated, batch):
    key, logits_fn, epsilon = replicated
    found = attacks.pgd_attack(
        keys.fold_in(key, batch.index), logits_fn, batch.images, batch.labels, epsilon=epsilon,
        norm=own.norm, num_steps=own.num_steps, restarts=own.restarts, loss='margin')
    return *_facts(logits_fn(found.images), batch.labels), jnp.broadcast_to(
        found.undefined, len(batch.images))

  def least(replicated, batch):
    logits_fn, epsilon = replicated
    lower = bounds.crown(logits_fn, batch.images, epsilon, norm=own.norm, labels=batch.labels,
                         method=own.method, num_steps=own.alpha_steps, chunk=own.chunk)
    other = jnp.arange(lower.shape[1]) != batch.labels[:, None]
    return jnp.min(lower, axis=1, where=other, initial=jnp.inf)

  classify = lambda logits_fn, batch: _facts(logits_fn(batch.images), batch.labels)
  return tuple(parallel.map_rows(function, devices) for function in (classify, find, least))


def _facts(logits, labels):
  """Classes, and margins z_y - max_j z_j, [batch] each."""
  return losses.predicted(logits), -losses.margin(logits, labels)


def _line(batch, row, epsilon, clean, adversarial, margin, undefined, lower, seconds):
  label = int(batch.labels[row])
  by = ('clean' if clean != label else 'attack' if adversarial != label
        else 'bound' if lower > 0 else None)
  return {'idx': int(batch.index[row]), 'epsilon': epsilon, 'label': label, 'predict': int(clean),
          'adversarial': int(adversarial), 'margin': _number(margin), 'lower': _number(lower),
          'verdict': {None: 'unknown', 'bound': 'verified'}.get(by, 'falsified'), 'by': by,
          'seconds': round(seconds, 6), **({'undefined': True} if undefined else {})}


def _number(value):
  """As JSON has it: null of what is not finite."""
  return float(value) if np.isfinite(value) else None


def _go_on(run, logits_fn, image, lines):
  """Gives what the lines of an image leave open to the exact verifier, as long as there is time."""
  left = run.bound.time_limit
  for number, line in enumerate(lines):
    if line['verdict'] != 'unknown':
      continue
    with _mistakes():
      found = bounds.exact(logits_fn, image, line['label'], line['epsilon'], norm=run.bound.norm,
                           time_limit=left)
    left -= found.seconds
    line['seconds'] = round(line['seconds'] + found.seconds, 6)
    if found.verdict == 'verified':
      line |= {'verdict': 'verified', 'by': 'exact', 'lower': _number(found.margin)}
    if found.verdict == 'falsified':
      _falsify(lines[number:], *_facts(
          jax.jit(lambda f, x: f(x))(logits_fn, jnp.asarray(found.example)[None]),
          np.array([line['label']])))
    if found.verdict != 'verified' or left <= 0:
      return


def _falsify(lines, adversarial, margin):
  """Notes in lines of one image, of some radius and larger ones, an image that is misclassified."""
  for line in lines:
    line['margin'] = min(x for x in (line['margin'], float(margin[0])) if x is not None)
    if line['verdict'] == 'unknown' and adversarial[0] != line['label']:
      line |= {'verdict': 'falsified', 'by': 'exact', 'adversarial': int(adversarial[0])}


@contextlib.contextmanager
def _mistakes():
  """A context in which a ValueError of the bounds is a line that names the stage."""
  try:
    yield
  except UserError:
    raise
  except ValueError as error:
    raise UserError(f'--stages=bound: {error}') from error


def _result(log):
  """Lines on what was found."""
  if not len(log.idx):
    return 'bound: no images'
  at = ', '.join(
      f'{np.mean(log.verified[:, j]):.1%} (PGD {np.mean(log.withstood[:, j]):.1%}) '
      f'at {epsilon:.4g}' for j, epsilon in enumerate(log.epsilons))
  return (f"bound: {log.header['method']} {log.header['norm']}, {len(log.idx):,} images; accuracy "
          f'{np.mean(log.predict == log.label):.1%}, verified {at}')
