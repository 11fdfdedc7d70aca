"""The default experiment, configs/digits.py:smoothadv.

  python -m launch --config=configs/smoothadv_digits.py --workdir=runs/demo
"""

from configs import digits

get_config = digits.smoothadv


def sweep():
  return digits.sweep('smoothadv')
