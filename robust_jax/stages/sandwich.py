"""The sandwich stage: the certified radius below, a confirmed adversarial example above.

Both on the same smoothed classifier and the same images. An adversarial example within a
certificate contradicts it: then the draws, the statistics or the classifier are not what they are
taken for.
"""

import functools
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from robust_jax import analysis, attacks, certification, inputs, keys, smoothing
from robust_jax.certification import log as certify_log
from robust_jax.devices import parallel
from robust_jax.errors import CrossingError, UserError
from robust_jax.stages import images, weights
from robust_jax.stages.certify import settings
from robust_jax.workdir import monitoring, records


def check(run, workdir, wanted):
  """Raises UserError where there are, and will be, no certificates to start from."""
  path = Path(workdir) / 'certify.jsonl'
  if run.certify is not None and 'certify' not in wanted and not path.exists():
    raise UserError(f'--stages=sandwich: {workdir} has no {path.name}; run the certify stage first')


def sandwich(run, workdir):
  """Attacks the certified images, and writes sandwich.jsonl, a line an image.

  DDN, through num_noise fixed draws an image, gives the direction, and `attacks.smallest` the
  shortest perturbation along it that fresh draws confirm. An image with a certificate of a wrong
  class is misclassified already: its adversarial radius is 0.
  """
  if run.certify is None:
    print('sandwich: skipped, there are no certificates')
    return {}
  loaded = weights.load(run, workdir)
  certified = _certificates(run, workdir, loaded)
  header = {'sandwich': {**run.config['sandwich'], 'num_noise': _num_noise(run)},
            **{name: run.config['evaluation'][name] for name in ('n', 'alpha')},
            'sigma': run.sigma, 'noise': run.config['certify']['noise'],
            'certified_alpha': run.config['certify']['alpha'], 'seed': run.config['seed'],
            'num_classes': run.test_data.num_classes, **loaded.origin}
  path = Path(workdir) / 'sandwich.jsonl'
  entries = records.resume(path, {'header': header})
  records.check_same(path, entries[0].get('header', {}), header)
  done = {entry['idx'] for entry in entries[1:]}
  wrong = [idx for idx, (label, predict, _) in certified.items() if predict not in (label, -1)]
  records.append(path, *({**_entry(idx, *certified[idx]), 'adversarial': 0., 'tests': []}
                         for idx in wrong if idx not in done))
  everything = sorted(certified.keys() - set(wrong))
  left = [idx for idx in everything if idx not in done]
  find, bar = _finder(run), monitoring.bar(desc='sandwich', initial=len(everything) - len(left),
                                           total=len(everything), unit='image')
  # The same for what an interruption has left: logits depend on the shape in their last bits.
  batch_size = images.even_size(len(everything), run.evaluation.batch_size, len(run.devices))
  for chunk in images.batches(run.test_data, left, batch_size, pad=True):
    real = chunk.mask > 0
    candidates, undefined = find((run.key('sandwich'), loaded.logits_fn), chunk)
    found = attacks.smallest(
        run.key('sandwich'), loaded.logits_fn, chunk.images, chunk.labels,
        np.where(real.reshape(-1, 1, 1, 1), candidates, chunk.images), sigma=run.sigma,
        n=run.evaluation.n, alpha=run.evaluation.alpha, halvings=run.sandwich.halvings,
        batch_size=run.certify.batch_size, noise=run.config['certify']['noise'],
        example_ids=chunk.index, count=certification.sharded_count(run.devices))
    records.append(path, *({
        **_entry(int(chunk.index[i]), *certified[int(chunk.index[i])]),
        'adversarial': float(found.radius[i]) if np.isfinite(found.radius[i]) else None,
        'tests': found.tests[i], **({'undefined': True} if undefined[i] else {})}
                           for i in np.flatnonzero(real)))
    bar.update(int(real.sum()))
  bar.close()
  print(_result(analysis.read_sandwich(path)), flush=True)
  return {'origin': loaded.origin, 'num_images': len(certified)}


def check_crossings(workdir):
  """Raises CrossingError, which names the images, where an attack is within a certificate."""
  path = Path(workdir) / 'sandwich.jsonl'
  log = analysis.read_sandwich(path) if path.exists() else None
  crossed = [] if log is None else np.flatnonzero(analysis.crossings(log))
  if len(crossed):
    i, more = crossed[0], f' and {len(crossed) - 1} more' if len(crossed) > 1 else ''
    raise CrossingError(
        f'{path}: image {log.idx[i]} has an adversarial example at l2 {log.adversarial[i]:.4g}, '
        f'within its certified radius {log.certified[i]:.4g}{more}: a certificate is false, with '
        f'probability at most {_alpha(log):g} an image by chance')


def _certificates(run, workdir, loaded):
  """{idx: (label, predicted class, certified radius)} of all images that are to be certified."""
  path = Path(workdir) / 'certify.jsonl'
  logged = certify_log.read(path)
  certify_log.check_settings(path, logged.settings, settings(run, loaded))
  rows = zip(logged.idx.tolist(), logged.label.tolist(), logged.predict.tolist(),
             logged.radius.tolist())
  found = {idx: row for idx, *row in rows}
  chosen = images.chosen(run, run.certify_images)
  missing = [idx for idx in chosen if idx not in found]
  if missing:
    raise UserError(f'--stages=sandwich: {path} lacks {len(missing)} of {len(chosen)} images, '
                    f'{missing[0]} for one; let the certify stage finish first')
  return {idx: found[idx] for idx in chosen}


def _entry(idx, label, predict, radius):
  return {'idx': idx, 'label': label, 'predict': predict, 'certified': radius}


def _num_noise(run):
  own = run.sandwich.num_noise
  return run.evaluation.num_noise if own is None else own


def _finder(run):
  """((key, logits_fn), batch) -> (candidates, undefined [batch]), over the devices."""
  # No perturbation within the box is longer.
  attack = functools.partial(attacks.ddn, num_steps=run.sandwich.num_steps,
                             epsilon=inputs.diameter('l2', run.test_data.image_shape))

  def find(replicated, batch):
    key, logits_fn = replicated
    example_keys = keys.fold_in(key, batch.index)
    noise = smoothing.sample_noise(keys.fold_in(example_keys, 1), batch.images, sigma=run.sigma,
                                   num_noise=_num_noise(run))
    result = attack(keys.fold_in(example_keys, 0), logits_fn, batch.images, batch.labels,
                    noise=noise)
    return result.images, jnp.broadcast_to(result.undefined, len(batch.images))

  return parallel.map_rows(find, run.devices)


def _alpha(log):
  """The probability with which the sandwich of an image may be false."""
  return log.header['alpha'] + log.header['certified_alpha']


def _result(log):
  """Lines on what was found."""
  ratios, crossed = analysis.radius_ratios(log), analysis.crossings(log)
  known = np.isfinite(log.adversarial)
  middle = f'; adversarial / certified radius {np.median(ratios):.3g} in the median' if len(
      ratios) else ''
  lines = [f'sandwich: {len(log.idx):,} images, {known.sum():,} with a confirmed adversarial '
           f'example{middle}; {crossed.sum()} within a certificate']
  return '\n'.join(lines + [
      f'alarm: image {log.idx[i]}: adversarial at l2 {log.adversarial[i]:.4g}, certified to '
      f'{log.certified[i]:.4g}' for i in np.flatnonzero(crossed)])
