"""The fields that every experiment shares. Lengths and radii are in [0, 1] pixel units."""

import ml_collections

from robust_jax import experiment
from robust_jax.experiment import component


def get_config():
  """The base; each experiment overrides what differs."""
  config = ml_collections.ConfigDict()

  # Decides everything random: initialisation, order, augmentation, noise, attacks, certificates.
  config.seed = 0
  # Radius of the perturbations that training defends against; evaluation.epsilons has its own.
  config.epsilon = 0.
  # Standard deviation of the noise, in training, attack and certification; 0: no smoothing.
  config.sigma = 0.

  config.data = experiment.section(
      experiment.DataSettings,
      # An entry of robust_jax.data.DATASETS.
      name='digits',
      # Folder of prepared TFDS datasets; None: TFDS's own.
      data_dir=None,
      # 'none', 'crop' (pad 4 and crop) or 'crop_flip'.
      augment='none',
  )
  config.train = experiment.section(
      experiment.TrainSettings,
      # Images a step, over all devices.
      batch_size=256,
      # Length of the training that schedules refer to.
      num_epochs=90.,
      # Stop after this many steps if that is sooner; 0: after num_epochs.
      num_steps=0,
      # Steps a line of metrics.jsonl.
      log_every=50,
      # Epochs between evaluations on the test split.
      eval_every_epochs=1.,
      eval_batch_size=512,
      # Steps between checkpoints, and how many are kept.
      checkpoint_every=500,
      keep_checkpoints=2,
  )
  # The empirical stage: accuracy under config.attack at each radius.
  config.evaluation = experiment.section(
      experiment.EvaluationSettings,
      epsilons=(0.25, 0.5, 0.75, 1.),
      # Draws that the attack on a smoothed classifier averages over.
      num_noise=32,
      # Draws and error probability of the prediction that judges it.
      n=1000,
      alpha=0.001,
      # Every stride-th test image; of those the first num_images, 0: all.
      stride=20,
      num_images=0,
      # Images attacked at once, over all devices.
      batch_size=64,
      # Images shown in the report.
      gallery=8,
  )
  # Which test images are certified, and how many in one call.
  config.certify_images = experiment.section(
      experiment.ImagesSettings, stride=1, num_images=0, images_per_call=50)

  # The fields of a component are the arguments of its function, where they are documented.
  config.model = component('model', 'lenet')
  config.method = component('method', 'standard')
  config.optimizer = component('optimizer', 'sgd', momentum=0.9, weight_decay=1e-4)
  config.schedule = component('schedule', 'step', learning_rate=0.01)
  config.attack = component('attack', 'pgd', norm='l2', num_steps=20)
  # Cohen et al. 2019: n0=100, n=100,000, alpha=0.001.
  config.certify = component('certify', 'fixed')
  return config
