"""As pgd_digits, with the worst of four random starts of each image, and a share of clean loss.

  python -m launch --config=configs/pgd_restarts_digits.py --workdir=runs/pgd_restarts_digits

Both are variants of Kolter & Madry's tutorial, Adversarial robustness: theory and practice.
"""

from configs import pgd_digits


def get_config():
  config = pgd_digits.get_config()
  config.method.clean_share = 0.3
  config.method.attack.restarts = 4
  return config
