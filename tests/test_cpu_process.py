"""Settings of the process, each tried in a process of its own."""

import os
import subprocess
import sys

import pytest

from robust_jax.cpu import onednn

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(code, **environment):
  """Standard output and errors of a fresh interpreter."""
  kept = {name: value for name, value in os.environ.items()
          if name not in ('XLA_FLAGS', 'JAX_COMPILATION_CACHE_DIR')}
  return subprocess.run([sys.executable, '-c', code], env={**kept, **environment}, cwd=ROOT,
                        capture_output=True, text=True, check=True)


def test_what_is_compiled_is_kept(tmp_path):
  code = """
import jax, jax.numpy as jnp
from robust_jax.cpu import process
process.tune()
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
print(float(jax.jit(lambda x: jnp.sin(x @ x))(jnp.ones((4, 4))).sum()))
print(hits.count('/jax/compilation_cache/cache_hits'))
"""
  first, second = (run(code, XDG_CACHE_HOME=str(tmp_path)).stdout.split() for _ in range(2))
  assert (tmp_path / 'robust_jax').is_dir()
  assert first[0] == second[0]
  assert first[1] == '0' and int(second[1]) > 0


def test_a_folder_of_the_users_own_is_kept_to(tmp_path):
  code = """
from robust_jax.cpu import process
process.tune()
import jax
print(jax.config.jax_compilation_cache_dir)
"""
  out = run(code, JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'mine')).stdout
  assert out.strip() == str(tmp_path / 'mine')


@pytest.mark.parametrize('folder, says', [
    ({'JAX_COMPILATION_CACHE_DIR': '/proc/nowhere'}, True), ({'XDG_CACHE_HOME': '/proc'}, False),
    ({'HOME': '/proc', 'XDG_CACHE_HOME': ''}, False), ({'HOME': '', 'XDG_CACHE_HOME': ''}, None)])
def test_a_folder_that_cannot_be_written_is_left_alone(folder, says, tmp_path):
  code = """
import os, pwd
def nobody(uid): raise KeyError(uid)
if not os.environ['HOME']: del os.environ['HOME']; pwd.getpwuid = nobody
import jax, jax.numpy as jnp
from robust_jax.cpu import process
process.tune()
print(jax.config.jax_compilation_cache_dir, float(jax.jit(lambda x: x + 1)(jnp.zeros(()))))
"""
  done = run(code, **folder)
  assert done.stdout.split() == ['None', '1.0']
  assert done.stderr.count('\n') == bool(says)
  assert not says or 'JAX_COMPILATION_CACHE_DIR' in done.stderr


def test_flags_are_added_once_and_the_users_stay():
  code = """
import os
from robust_jax.cpu import process
process.keep_compilations = lambda: None
process.tune(), process.tune()
print(os.environ['XLA_FLAGS'])
"""
  out = run(code, XLA_FLAGS='--xla_force_host_platform_device_count=3').stdout.split()
  assert out.count('--xla_force_host_platform_device_count=3') == 1
  added = [flag for flag in out if 'ynn_fusion_type' in flag]
  assert len(added) == int(onednn.available())
  mine = '--xla_cpu_experimental_ynn_fusion_type=dot'
  assert run(code, XLA_FLAGS=mine).stdout.split() == [mine]


def test_sums_are_right_with_the_flags():
  """Sums over first, middle and last axes, of products, windows and parts of uneven sizes."""
  code = '''
import numpy as np
from robust_jax.cpu import process
process.keep_compilations = lambda: None
process.tune()
import jax
from robust_jax.models import layers
rng = np.random.default_rng(0)
def check(f, *arrays):
  exact = f(*(x.astype(np.float64) for x in arrays))
  np.testing.assert_allclose(jax.jit(f)(*arrays), exact, rtol=2e-5, atol=1e-5, err_msg=str(
      [x.shape for x in arrays]))
product = lambda axes: lambda x, y: (x * y).sum(axes)
for columns in (1000, 32769, 40000, 65537, 100001):
  for rows in (2, 3, 10):
    x, y = rng.random((2, rows, columns), np.float32)
    for f in (product(0), product(1), lambda x, y: (x + y).mean(0), lambda x, y: (x ** 2).sum(1)):
      check(f, x, y)
for shape in ((64, 32, 32, 16), (1000, 8, 8, 64), (37, 33, 31, 20), (2, 17, 32, 32, 3)):
  x, y = rng.random((2, *shape), np.float32)
  for axes in (0, -1, (0, 1), (1, 2), (0, 1, 2)):
    check(product(axes), x, y)
  check(lambda x, y: (x * y).reshape(shape[0] * shape[1], -1).sum(0), x, y)
for side, size in ((24, 2), (25, 3)):
  x = rng.random((32, side, side, 20), np.float32)
  part = x[:, :24, :24].reshape(32, 24 // size, size, 24 // size, size, 20)
  np.testing.assert_array_equal(jax.jit(lambda x: layers.max_pool(x, size))(x), part.max((2, 4)))
'''
  run(code)


@pytest.mark.skipif(sys.platform != 'linux', reason='counts page faults as Linux does')
def test_memory_is_kept():
  """Buffers of 64 MiB, freed and taken again in a thread, fault no page in."""
  code = """
import resource, threading, numpy as np
from robust_jax.cpu import process
process.keep_memory()
def work():
  for _ in range(2): np.ones(2**23)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(5): np.ones(2**23)
  print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start(), thread.join()
"""
  assert int(run(code).stdout) < 1000  # of 81,920


def test_convolutions_that_cannot_be_kept_do_not_warn(tmp_path):
  code = """
import jax, jax.numpy as jnp
from robust_jax.cpu import onednn, process
process.tune()
conv = lambda x, k: onednn.conv(x, k, strides=(1, 1), padding=((1, 1), (1, 1)))
print(float(jax.jit(conv)(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))).sum()))
"""
  for environment in ({'XDG_CACHE_HOME': str(tmp_path)},
                      {'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'mine')}):
    done = run(code, **environment)
    assert done.stdout.strip() == '400.0'
    assert not done.stderr
