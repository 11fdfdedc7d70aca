"""Everything without `robust_jax/cpu`, as if the folder were deleted, beside everything with it."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import plain_and_fast
import pytest

from robust_jax import backend

ROOT = Path(__file__).parents[1]
WITHOUT = """
import sys
sys.modules['robust_jax.cpu'] = None
from robust_jax import backend
import plain_and_fast
backend.tune()
plain_and_fast.main(sys.argv[1])
assert not any(name.startswith('robust_jax.cpu.') for name in sys.modules)
"""


def test_results_without_the_folder_are_those_with_it_up_to_rounding(tmp_path):
  path, modules = str(tmp_path / 'plain.npz'), os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
  subprocess.run([sys.executable, '-c', WITHOUT, path], check=True, cwd=ROOT,
                 env={**os.environ, 'PYTHONPATH': modules})
  assert backend.layers() is not None
  with np.load(path) as plain:
    for name in plain_and_fast.NETWORKS:
      fast = plain_and_fast.compute(name)
      assert {f'{name} {quantity}' for quantity in fast} <= set(plain)
      for quantity, array in fast.items():
        most = 1 if quantity == 'counts' else 1e-3
        np.testing.assert_allclose(plain[f'{name} {quantity}'], array, atol=most, rtol=0,
                                   err_msg=f'{name} {quantity}')


@pytest.mark.parametrize(('switch', 'platform', 'cpu', 'layers'), [
    ('', 'cpu', True, True), ('plain', 'cpu', False, False), ('', 'gpu', True, False)])
def test_the_switch_and_other_devices(switch, platform, cpu, layers, monkeypatch):
  monkeypatch.setenv(backend.SWITCH, switch)
  monkeypatch.setattr(jax, 'default_backend', lambda: platform)
  assert (backend.cpu() is not None, backend.layers() is not None) == (cpu, layers)
