"""The empirical stage: accuracy under attack at a grid of radii, image by image."""

import functools
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from robust_jax import analysis, attacks, certification, keys, losses, smoothing
from robust_jax.attacks import threat_models
from robust_jax.config import lengths
from robust_jax.devices import parallel
from robust_jax.errors import UserError
from robust_jax.models import external
from robust_jax.stages import images, suite, weights
from robust_jax.workdir import checkpoint, monitoring, records

# float32's of images that were projected.
_ROUNDING = 1e-5


def attack(run, workdir):
  """Attacks test images at each radius; writes attack.jsonl and gallery.npz.

  A smoothed classifier (run.attacked_sigma > 0) is attacked through num_noise fixed draws an image
  and judged by `certification.judge` on fresh ones. The log has the class, -1 where it abstains,
  and the votes from which the verdicts follow: an image on which it abstains is wrong, but no
  adversarial example.
  """
  logits_fn, origin, _ = weights.load(run, workdir)
  settings = run.evaluation
  source = _source(run, logits_fn)
  judge = _judge(run, logits_fn)
  header = {'attack': run.config['attack'], 'epsilons': list(settings.epsilons),
            'smoothed': run.attacked_sigma > 0, 'sigma': run.attacked_sigma,
            'seed': run.config['seed'],
            **{name: run.config['evaluation'][name]
               for name in ('num_noise', 'n', 'alpha', 'stride', 'num_images')},
            **({'transfer_from': settings.transfer_from} if settings.transfer_from else {}),
            **({'num_classes': run.test_data.num_classes} if run.attacked_sigma > 0 else {}),
            **origin}
  path = Path(workdir) / 'attack.jsonl'
  entries = records.resume(path, {'header': header})
  records.check_same(path, entries[0].get('header', {}), header)
  done = {entry['idx'] for entry in entries[1:]}
  everything = images.chosen(run, settings)
  save_gallery = functools.partial(_save_gallery, workdir, run, logits_fn)
  if run.config['attack']['name'] in attacks.SUITES:
    facts = suite.attack(run, workdir, logits_fn, header, everything,
                         predict=lambda x: judge(x, None)[0], save_gallery=save_gallery)
    return {'origin': origin, 'num_images': len(everything), **facts}
  find = _attacker(run)
  left = [index for index in everything if index not in done]
  bar = monitoring.bar(desc='attack', initial=len(everything) - len(left),
                       total=len(everything), unit='image')
  # The same for what an interruption has left: logits depend on the shape in their last bits.
  batch_size = images.even_size(len(everything), settings.batch_size, len(run.devices))
  for chunk in images.batches(run.test_data, left, batch_size, pad=True):
    real = chunk.mask > 0
    clean, clean_votes = judge(chunk.images, chunk)
    attacked, undefined = zip(*(find((run.key('attack'), source, epsilon), chunk)
                                for epsilon in settings.epsilons))
    for epsilon, found in zip(settings.epsilons, attacked):
      _check_found(run.config['attack'], chunk.images[real], found[real], epsilon)
    predicted, votes = zip(*(judge(x, chunk) for x in attacked))
    predicted = np.stack(predicted, axis=-1)
    undefined = np.stack(undefined, axis=-1)
    if not (Path(workdir) / 'gallery.npz').exists() and settings.gallery:
      save_gallery(chunk, clean, attacked, predicted)
    records.append(path, *({'idx': int(chunk.index[i]), 'label': int(chunk.labels[i]),
                            'clean': int(clean[i]), 'adversarial': predicted[i].tolist(),
                            **({} if clean_votes is None else {
                                'votes': [each[i].tolist() for each in (clean_votes, *votes)]}),
                            **({'undefined': undefined[i].tolist()} if undefined[i].any() else {})}
                           for i in np.flatnonzero(real)))
    bar.update(int(real.sum()))
  bar.close()
  print(_result(path), flush=True)
  return {'origin': origin, 'num_images': len(everything)}


def _source(run, logits_fn):
  """The network that is attacked: the run's own, or that of config.evaluation.transfer_from.

  Raises:
    UserError: no trained network is there, or one of other images or classes.
  """
  folder = run.evaluation.transfer_from
  if folder is None:
    return logits_fn
  network, variables, _ = checkpoint.load(folder)
  source = network.eval_logits(variables)
  shape = run.test_data.image_shape
  external.check(source, shape, run.test_data.num_classes,
                 target=f'config.evaluation.transfer_from is {folder!r}, whose network')
  return source


def _attacker(run):
  """((key, logits_fn, epsilon), batch) -> (attacked images, undefined [batch]).

  Over the devices or on the host, where padding is left as it is.
  """

  def find(replicated, batch):
    key, logits_fn, epsilon = replicated
    example_keys = keys.fold_in(key, batch.index)
    noise = smoothing.sample_noise(
        keys.fold_in(example_keys, 1), batch.images, sigma=run.attacked_sigma,
        num_noise=run.evaluation.num_noise) if run.attacked_sigma else None
    result = run.attack(keys.fold_in(example_keys, 0), logits_fn, batch.images, batch.labels,
                        epsilon=epsilon, noise=noise)
    return result.images, jnp.broadcast_to(result.undefined, len(batch.images))

  def find_on_host(replicated, batch):
    padding = jax.tree.map(lambda rows: rows[batch.mask == 0], batch)
    found = find(replicated, jax.tree.map(lambda rows: rows[batch.mask > 0], batch))
    return tuple(map(np.concatenate, zip(found, (padding.images, padding.mask > 0))))

  if run.config['attack']['name'] in attacks.ON_HOST:
    return find_on_host
  return parallel.map_rows(find, run.devices)


def _result(path):
  """A line on the accuracies: at each radius, of images right at it and at all smaller ones."""
  log = analysis.read_attack(path)
  if not len(log.idx):
    return 'attack: no images'
  accuracies = analysis.robust_accuracy(log)
  unsure = analysis.robust_accuracy(log, confirmed=True) - accuracies
  under_attack = ', '.join(
      f'{accuracy:.1%}{f" ({share:.1%} undecided)" if share else ""} at {epsilon:.4g}'
      for accuracy, share, epsilon in zip(accuracies, unsure, log.epsilons))
  attack = log.header['attack']
  norm = f" {attack['norm']}" if 'norm' in attack else ''
  steps = f", {attack['num_steps']} steps" if 'num_steps' in attack else ''
  return (f"attack: {attack['name']}{norm}{steps}, {len(log.idx):,} images; accuracy "
          f'{np.mean(log.clean == log.label):.1%}, {under_attack}')


def _check_found(settings, pixels, found, epsilon):
  """Raises UserError where an attack has left the box or, one of the user's own, its ball."""
  name = f"config.attack.name: {settings['name']!r}"
  if settings.get('order') != 'ball_only' and (found.min() < -_ROUNDING
                                               or found.max() > 1 + _ROUNDING):
    raise UserError(f'{name} must return images in [0, 1], got values from {found.min():.4g} to '
                    f'{found.max():.4g}')
  if ':' in settings['name'] and settings.get('norm') in threat_models.NORMS:
    norms = threat_models.norms(found - pixels, settings['norm'])
    if norms.max() > epsilon * (1 + 1e-4) + _ROUNDING:
      raise UserError(f"{name} must stay within {settings['norm']} {epsilon:g} of the images, got "
                      f'{norms.max():.4g}')


def _judge(run, logits_fn):
  """(images, batch) -> (classes of the (smoothed) classifier, -1 where it abstains; their votes).

  The votes [batch, 2], as `certification.Judgement` has them, are None without noise.
  """
  if run.attacked_sigma == 0:
    classify = parallel.map_rows(lambda f, x: losses.predicted(f(x)), run.devices)
    return lambda x, batch: (classify(logits_fn, x), None)
  count = certification.sharded_count(run.devices)

  def judge(x, batch):
    found = certification.judge(
        run.key('attack'), logits_fn, x, batch.labels, sigma=run.attacked_sigma,
        n=run.evaluation.n, alpha=run.evaluation.alpha,
        batch_size=run.config['certify']['batch_size'], example_ids=batch.index, in_box=False,
        count=count)
    return found.prediction, found.votes

  return judge


def _confidence(run, logits_fn, images, index):
  """[batch]: the share of the votes that the (smoothed) classifier's first class has.

  Without noise it is the largest softmax probability.
  """
  if run.attacked_sigma == 0:
    largest = jax.jit(lambda f, x: jax.nn.softmax(f(x)).max(axis=-1))
    return np.asarray(largest(logits_fn, images))
  counts = np.asarray(certification.sharded_count(run.devices)(
      jax.random.fold_in(run.key('attack'), certification.PREDICT), logits_fn, images, index, 0,
      run.evaluation.n, sigma=run.attacked_sigma,
      batch_size=run.config['certify']['batch_size']))
  return counts.max(axis=-1) / run.evaluation.n


def _save_gallery(workdir, run, logits_fn, chunk, clean, attacked, predicted):
  """Some images of the first chunk; those that the attack broke first.

  At the radius of training if it is among the attack's, else at the middle one.
  """
  radii, trained = run.evaluation.epsilons, lengths.trained_radius(run)
  same = np.flatnonzero(np.isclose(radii, trained, rtol=1e-3)) if trained else []
  at = int(same[0]) if len(same) else len(radii) // 2
  broken = (clean == chunk.labels) & (predicted[:, at] != chunk.labels)
  order = np.argsort(~broken, kind='stable')
  order = order[chunk.mask[order] > 0][:run.evaluation.gallery]
  index, images, adversarial = chunk.index[order], chunk.images[order], attacked[at][order]
  file = io.BytesIO()
  np.savez_compressed(
      file, index=index, images=images, adversarial=adversarial, labels=chunk.labels[order],
      clean=clean[order], predicted=predicted[order, at],
      clean_confidence=_confidence(run, logits_fn, images, index),
      confidence=_confidence(run, logits_fn, adversarial, index),
      epsilon=radii[at], norm=run.config['attack'].get('norm', ''))
  records.write_bytes(Path(workdir) / 'gallery.npz', file.getvalue())
