"""Accuracy of a classifier over batches of a dataset."""

import functools

import jax

from robust_jax import inputs, keys, losses, smoothing
from robust_jax.devices import parallel


def accuracy(logits_fn, batches):
  """The share of examples whose largest logit is the label's.

  Args:
    logits_fn: images -> logits, normalisation included.
    batches: iterable of `types.Batch`; padding (mask 0) does not count.

  Returns:
    float in [0, 1].
  """
  return loss_and_accuracy(jax.random.key(0), logits_fn, batches, sigma=0.,
                           devices=jax.devices()[:1])['accuracy']


def loss_and_accuracy(key, logits_fn, batches, *, sigma, devices):
  """Mean cross-entropy and accuracy of the base classifier, under one draw of noise per image.

  Args:
    key: one key; the image with index i uses fold_in(key, i).
    logits_fn: images -> logits.
    batches: iterable of `types.Batch`, whose rows divide by the devices.
    sigma: standard deviation of the noise in pixel units; 0 for clean images.
    devices: list of devices.

  Returns:
    {'loss', 'accuracy', 'num_images'}.

  Raises:
    ValueError: images that are not floating point in [0, 1], labels that are no classes, or a
      logits_fn that does not give logits.
  """
  run = _mapped(tuple(devices))
  logits_fn = smoothing.as_pytree(logits_fn)
  loss = correct = count = 0
  for batch in batches:
    images = inputs.images(batch.images)
    num_classes = inputs.num_classes(logits_fn, images)
    inputs.labels(batch.labels, len(images), num_classes=num_classes)
    sums = run((key, logits_fn, sigma), batch)
    loss += float(sums['loss'].sum())
    correct += float(sums['correct'].sum())
    count += float(sums['count'].sum())
  if count == 0:
    raise ValueError('batches must hold at least one example')
  return {'loss': loss / count, 'accuracy': correct / count, 'num_images': int(count)}


@functools.cache
def _mapped(devices):
  return parallel.map_rows(_evaluate, list(devices))


def _evaluate(replicated, batch):
  key, logits_fn, sigma = replicated
  noise = smoothing.sample_noise(keys.fold_in(key, batch.index), batch.images, sigma=sigma,
                                 num_noise=1)[0]
  logits = logits_fn(batch.images + noise)
  correct = losses.predicted(logits) == batch.labels
  return {'loss': batch.mask * losses.cross_entropy(logits, batch.labels),
          'correct': batch.mask * correct, 'count': batch.mask}
