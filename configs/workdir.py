"""The config of an existing workdir, to run a stage of it: --config=configs/workdir.py:DIR.

The launcher uses it by itself where --workdir names a run and --config is not given.
"""

from robust_jax.config import sections


def get_config(workdir):
  return sections.saved_config(workdir)
