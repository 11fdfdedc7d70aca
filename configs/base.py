"""The fields that every experiment shares. Lengths and radii are in [0, 1] pixel units."""

import copy
import inspect
from functools import partial
from pathlib import Path

from robust_jax.config import configuration
from robust_jax.config.configuration import component
from robust_jax.errors import UserError, suggest

# attack('pgd', num_steps=7): a section by the name of its function, defaults filled in.
model, method, optimizer, schedule, attack, certify = (
    partial(component, kind)
    for kind in ('model', 'method', 'optimizer', 'schedule', 'attack', 'certify'))


def experiments(scope):
  """{name: function} of the experiments in a config file: its public functions."""
  return {name: value for name, value in scope.items()
          if inspect.isfunction(value) and value.__module__ == scope['__name__']
          and name not in ('get_config', 'sweep') and not name.startswith('_')}


def experiment(scope, name):
  """The config of an experiment of a config file, whose globals() are `scope`."""
  found = experiments(scope)
  if name not in found:
    file = Path(scope['__file__']).name
    raise UserError(f'configs/{file} has no experiment {name!r} (python -m launch --list shows all)'
                    + suggest(name, found))
  return found[name]()


def get_config(*protocols, **changes):
  """The defaults with what `protocols` and then `changes` change: {field: value}.

  A dict changes fields of a section; a section, such as attack('pgd'), takes the place of one.
  """
  config = configuration.section(
      configuration.ExperimentSettings,
      # Decides everything random: initialisation, order, augmentation, noise, attacks,
      # certificates.
      seed=0,
      # Radius of the perturbations that training defends against; evaluation.epsilons has its own.
      epsilon=0.,
      # Standard deviation of the noise, in training, attack and certification; 0: no smoothing.
      sigma=0.,
      # What training starts from, and what is attacked and certified where nothing was trained:
      # a workdir, or a PyTorch checkpoint (.safetensors, .pth); None: a fresh initialisation.
      weights=None,
      # Initialise the last layer of `weights` anew and train from there: for other classes.
      new_head=False,
      # Which parameters are attacked and certified: the 'last', or the 'best' by test accuracy
      # (train.keep_best).
      checkpoint='last',
  )

  config.data = configuration.section(
      configuration.DataSettings,
      # A TFDS dataset of images with classes, as 'cifar100' or 'imagenet_resized/32x32', or
      # 'folder': data_dir/SPLIT/CLASS/IMAGE.
      name='digits',
      # Folder of prepared TFDS datasets; None: TFDS's own.
      data_dir=None,
      # 'none', 'crop' (pad 4 and crop), 'crop_flip' or 'resized_crop' (a random part, and flip).
      augment='none',
      # Height and width of the images in pixels; None: the dataset's own. Images of another size
      # are resized (short side to image_size * 256 / 224) and their middle kept.
      image_size=None,
      # 1 (grey) or 3 (RGB); None: the dataset's own, 3 of a folder.
      channels=None,
      # Black pixels added on every side.
      pad=0,
      # Tangent directions of each training image, for the methods that use them: the principal
      # directions of its so many neighbours of the same class, or a .npy file [images, d, k] of
      # orthonormal ones; 0: none.
      tangents=0,
      tangent_neighbors=20,
      tangents_file=None,
      # Input normalisation (images - mean) / std, one number or one a channel; None: that of
      # robust_jax.data.DATASETS, (0,) and (1,) for what is not there.
      mean=None,
      std=None,
      # What is trained on and tested on, as TFDS writes it: 'train[:90%]'. None: 'train'; 'test',
      # or validation where there is no test split with labels.
      train_split=None,
      test_split=None,
  )
  # Examples of a second source in every training batch, for self-training with pseudo-labels.
  config.extra = configuration.section(
      configuration.ExtraSettings,
      # A dataset, as data.name, or a file .npz with arrays images and labels.
      name=None,
      # Which split of the dataset, and the folder that it is in; None: data.data_dir.
      split='train',
      data_dir=None,
      # Pseudo-labels in place of the source's own: a file .npy, .txt (one a line) or .tsv (columns
      # idx and label), as --stages=label writes it.
      labels=None,
      # Their share of train.batch_size, 0: none; an epoch is one pass through the other examples.
      share=0.,
      # Of the loss of one of them, in the weighted mean that is minimised. The other metrics of
      # training count every example alike.
      weight=1.,
  )
  config.train = configuration.section(
      configuration.TrainSettings,
      # Images a step, over all devices.
      batch_size=256,
      # Length of the training that schedules refer to.
      num_epochs=90.,
      # Stop after this many steps if that is sooner; 0: after num_epochs.
      num_steps=0,
      # Parts that a batch goes through the network in, for less memory.
      accumulation=1,
      # Of the moving average of parameters that is tested and certified; 0: none.
      ema_decay=0.,
      # Steps a line of metrics.jsonl.
      log_every=50,
      # Epochs between evaluations on the test split.
      eval_every_epochs=1.,
      eval_batch_size=512,
      # Steps between checkpoints, and how many of the newest are kept.
      checkpoint_every=500,
      keep_checkpoints=2,
      # Keep the one of the highest test accuracy too: every evaluation then saves one.
      keep_best=False,
      # Write TensorBoard events besides metrics.jsonl.
      tensorboard=False,
      # Steps to trace with jax.profiler, after the first ten; as --profile.
      profile_steps=0,
  )
  # The empirical stage: accuracy under config.attack at each radius.
  config.evaluation = configuration.section(
      configuration.EvaluationSettings,
      epsilons=(0.25, 0.5, 0.75, 1.),
      # Noise of the smoothed classifier that is attacked; None: that of certification, 0: the
      # network itself is attacked.
      sigma=None,
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
  config.certify_images = configuration.section(
      configuration.ImagesSettings, stride=1, num_images=0, images_per_call=50)
  # --stages=verify: how many of the logged certificates are made again, 0: all.
  config.verify = configuration.section(configuration.VerifySettings, sample=0)
  # --stages=label: pseudo-labels of a dataset by this classifier, for config.extra.labels.
  config.label = configuration.section(
      configuration.LabelSettings,
      # As data.name and data.data_dir, whose values they have where None.
      name=None,
      split='train',
      data_dir=None,
      # The file .tsv that is written.
      output=None,
      # Noisy copies of each image that vote; 0: the image itself. None: 100 for a smoothed
      # classifier whose network was trained with noise, else 0.
      num_noise=None,
  )

  # The fields of a component are the arguments of its function, where they are documented.
  config.model = component('model', 'lenet')
  config.method = component('method', 'standard')
  config.optimizer = component('optimizer', 'sgd', momentum=0.9, weight_decay=1e-4)
  config.schedule = component('schedule', 'step', learning_rate=0.01)
  config.attack = component('attack', 'pgd', norm='l2', num_steps=20)
  # Cohen et al. 2019: n0=100, n=100,000, alpha=0.001. 'sequential' decides the radii of a grid,
  # 'anytime' any radius, with fewer draws.
  config.certify = component('certify', 'fixed')
  for fields in [*protocols, changes]:
    for name, value in fields.items():
      if isinstance(value, dict):
        config[name].update(value)
      else:
        config[name] = copy.deepcopy(value)
  return config
