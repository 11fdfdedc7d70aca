"""As pgd_digits, with attacks in training that aim at another class, drawn for each image and step.

  python -m launch --config=configs/pgd_targeted_digits.py --workdir=runs/pgd_targeted_digits

They ascend the target's logit minus the label's, as in Kolter & Madry's tutorial, Adversarial
robustness: theory and practice, chapter 4. `--config.method.attack.target=least_likely` aims at the
class that the network holds for the least likely.
"""

from configs import pgd_digits


def get_config():
  config = pgd_digits.get_config()
  config.method.attack.target = 'random'
  return config
