"""The certify stage: certificates of test images, logged line by line."""

import math
from pathlib import Path

import numpy as np

from robust_jax import analysis, certification
from robust_jax import workdir as workdirs
from robust_jax.certification import integer_noise, log, noise_sources
from robust_jax.errors import UserError
from robust_jax.stages import images, weights
from robust_jax.training import evaluate
from robust_jax.workdir import monitoring


def certify(run, workdir):
  """Certifies the test images of config.certify_images.

  Goes on where it was interrupted: after the last logged image, and for unfinished images after
  the last draws that were saved.
  """
  if run.certify is None:
    print('certify: skipped, there is no noise (config.sigma is 0 and config.certify.sigma unset); '
          f'the same command with --config.certify.sigma=S {workdirs.certify_beside(workdir)} '
          'certifies this network')
    return {}
  loaded = weights.load(run, workdir)
  with log.open_for_append(Path(workdir) / 'certify', settings(run, loaded),
                           workdirs.environment(run.devices)) as writer:
    everything = images.chosen(run, run.certify_images)
    left = [index for index in everything if index not in writer.done]
    bar = monitoring.bar(desc='certify', initial=len(everything) - len(left),
                         total=len(everything), unit='image')
    for each in rounds(run, loaded.logits_fn, left, writer.begun):
      finished = [] if each.certificate is None else log.records(
          each.index, each.labels, each.certificate, each.seconds)
      writer.write(finished, each.unfinished)
      bar.update(len(finished))
    bar.close()
  print(_result(Path(workdir) / 'certify.jsonl'), flush=True)
  return {'origin': loaded.origin, 'num_images': len(everything),
          'network': _without_noise(run, loaded.logits_fn, everything) if everything else None}


def _without_noise(run, logits_fn, indices):
  """{'accuracy', 'num_images'} of the network itself on the certified images, for the report."""
  devices = len(run.devices)
  batch_size = min(run.evaluation.batch_size, -(-len(indices) // devices) * devices)
  result = evaluate.loss_and_accuracy(
      run.key('evaluate'), logits_fn,
      images.batches(run.test_data, indices, batch_size, pad=True), sigma=0., devices=run.devices)
  return {name: result[name] for name in ('accuracy', 'num_images')}


def _result(path):
  """A line on what is certified by now, and what it took."""
  logged = log.read(path)
  if not len(logged.idx):
    return 'certify: no images'
  draws = analysis.mean_draws(log.read_votes(path))
  return (f'certify: {len(logged.idx):,} images, {draws:,.0f} draws and {np.mean(logged.time):.3g} '
          f's an image; {analysis.certified_accuracy(logged, 0.):.1%} right, average certified '
          f'radius {analysis.acr_text(logged)}')


def settings(run, loaded):
  """Everything that a certificate of a `weights.Classifier` depends on, for the log's header."""
  chosen, dataset, derived = run.certify_images, run.test_data, run.certify.settings()
  if run.config['certify']['noise'] != 'gaussian':
    derived['noise_loss'] = noise_sources.loss(
        run.config['certify']['noise'], sigma=run.sigma, n=run.config['certify']['n'],
        pixels=math.prod(dataset.image_shape))
  return {**run.config['certify'], **derived, 'sigma': run.sigma, 'seed': run.config['seed'],
          'dataset': run.data.name, 'split': dataset.split, 'stride': chosen.stride,
          'num_images': chosen.num_images, 'num_classes': dataset.num_classes,
          'training_noise': loaded.training_noise, **loaded.origin}


def rounds(run, logits_fn, indices, begun=None):
  """Certifies test images on all devices; yields a `stream.Round` after each call.

  Args:
    run: the Run.
    logits_fn: images -> logits.
    indices: list of positions in the test split.
    begun: see `certification.certify_stream`.
  """
  return certification.certify_stream(
      run.key('certify'), logits_fn, _examples(run, indices), run.certify,
      pool=run.certify_images.images_per_call, begun=begun,
      count=certification.sharded_count(run.devices))


def _examples(run, indices):
  for chunk in images.batches(run.test_data, indices, 1, pad=False):
    index, label, image = chunk.index[0], chunk.labels[0], chunk.images[0]
    if run.config['certify']['noise'] == 'integer':
      try:
        integer_noise.check_images(image)
      except ValueError as error:
        raise UserError(f"test image {index}, config.certify.noise='integer': {error}") from error
    yield certification.Example(index, label, image)
