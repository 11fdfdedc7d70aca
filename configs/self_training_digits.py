r"""Self-training on 8x8 digits: 300 labelled images, and 1,142 that a first network labels.

  python -m launch --config=configs/self_training_digits.py --workdir=runs/teacher \
      --stages=train --config.extra.share=0.0
  python -m robust_jax.stages.label runs/teacher --split="train[300:]" \
      --output=runs/self_training_digits.tsv
  python -m launch --config=configs/self_training_digits.py --workdir=runs/self_training_digits

About a minute each. SmoothAdv, as smoothadv_digits; half of each batch is pseudo-labelled.
"""

from configs import smoothadv_digits


def get_config():
  config = smoothadv_digits.get_config()
  config.data.train_split = 'train[:300]'
  config.extra.update(name='digits', split='train[300:]',
                      labels='runs/self_training_digits.tsv', share=0.5, weight=0.5)
  config.train.num_epochs = 40.
  return config
