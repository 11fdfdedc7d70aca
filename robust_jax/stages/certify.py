"""The certify stage: certificates of test images, logged line by line."""

import time
from pathlib import Path

from robust_jax import monitoring, parallel
from robust_jax import workdir as workdirs
from robust_jax.certification import log
from robust_jax.stages import classifier, images


def certify(run, workdir):
  """Certifies the test images of config.certify_images; goes on after the last logged line."""
  if run.certify is None:
    print('certify: skipped, there is no noise (config.sigma is 0 and config.certify.sigma unset)')
    return {}
  logits_fn, origin = classifier.load(run, workdir)
  count = parallel.sharded_count(run.devices)
  chosen, dataset = run.certify_images, run.test_data
  settings = {**run.config['certify'], 'sigma': run.sigma, 'seed': run.config['seed'],
              'dataset': run.data.name, 'split': run.test_data.split, 'stride': chosen.stride,
              'num_images': chosen.num_images, 'num_classes': dataset.num_classes, **origin}
  with log.open_for_append(Path(workdir) / 'certify', settings,
                           workdirs.environment(run.devices)) as writer:
    everything = images.chosen(dataset, chosen.stride, chosen.num_images)
    left = [index for index in everything if index not in writer.done]
    bar = monitoring.bar(desc='certify', initial=len(everything) - len(left),
                         total=len(everything), unit='image')
    for chunk in images.batches(dataset, left, chosen.images_per_call, pad=False):
      begun = time.monotonic()
      certificate = run.certify(run.key('certify'), logits_fn, chunk.images,
                                example_ids=chunk.index, count=count)
      seconds = (time.monotonic() - begun) / len(chunk.index)
      writer.write(log.records(chunk.index, chunk.labels, certificate, seconds))
      bar.update(len(chunk.index))
    bar.close()
  return {'origin': origin}
