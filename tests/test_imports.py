"""Who may import whom: the maths knows nothing of configs, data, files or the launcher."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'robust_jax'

# Each layer may import itself and the layers before it.
LAYERS = [
    {'types', 'errors', 'terminal', 'inputs', 'keys', 'named', 'cpu'},
    {'backend', 'devices'},
    {'losses', 'smoothing', 'models', 'data'},
    {'workdir'},
    {'attacks', 'certification'},
    {'training'},
    {'config'},
    {'stages', 'analysis', 'report'},
    {'studies'},
]
MATHS = ['inputs', 'losses', 'smoothing', 'keys', 'types', 'attacks',
         'certification/anytime', 'certification/bounds', 'certification/certify',
         'certification/fixed', 'certification/radius_grid', 'certification/rules',
         'certification/sampling', 'certification/stream', 'training/methods', 'training/step',
         'training/schedules']
MATHS_MAY_IMPORT = {'jax', 'numpy', 'scipy', 'optax', 'flax', 'chex', 'robust_jax'}


def files(name):
  path = PACKAGE / name
  return sorted(path.rglob('*.py')) if path.is_dir() else [path.with_suffix('.py')]


def imported(path):
  """Dotted names of the modules, and names taken from them, that a file imports."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def layer(part):
  return next(number for number, names in enumerate(LAYERS) if part in names)


def test_every_part_has_a_layer():
  parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == '.py' or path.is_dir()}
  assert parts - {'__init__', '__pycache__'} == set().union(*LAYERS)


@pytest.mark.parametrize('part', sorted(set().union(*LAYERS)))
def test_imports_go_down(part):
  for path in files(part):
    for name in imported(path):
      words = name.split('.')
      assert words[0] not in ('launch', 'configs', 'tests'), f'{path} imports {name}'
      if (words[0] == 'robust_jax' and len(words) > 1 and words[1] != '__version__'
          and (path.name, words[1]) != ('folder.py', 'config')):
        assert layer(words[1]) <= layer(part), f'{path} imports {name}'


@pytest.mark.parametrize('part', MATHS)
def test_the_maths_imports_few_packages(part):
  for path in files(part):
    packages = {name.split('.')[0] for name in imported(path)} - set(sys.stdlib_module_names)
    assert packages <= MATHS_MAY_IMPORT, path


def test_one_module_each_says_pmap_reads_configs_and_imports_the_versions_for_cpus():
  for path in PACKAGE.rglob('*.py'):
    text = path.read_text()
    assert 'pmap(' not in text or path.name == 'parallel.py', path
    assert 'ml_collections' not in text or path.name == 'sections.py', path
    assert 'robust_jax.cpu' not in text or 'cpu' in path.parts or path.name == 'backend.py', path


def test_the_core_imports_without_data_or_config_packages():
  block = """
import sys
for name in ('grain', 'tensorflow_datasets', 'ml_collections', 'tensorflow', 'sklearn'):
  sys.modules[name] = None
from robust_jax import attacks, certification, losses, models, smoothing, training, workdir
from robust_jax.devices import parallel
from robust_jax.training import evaluate
from robust_jax.training import methods
"""
  subprocess.run([sys.executable, '-c', block], check=True, cwd=ROOT)


def test_the_folder_above_a_checkout_of_the_same_name_has_the_package_too(tmp_path):
  (tmp_path / 'robust_jax').symlink_to(ROOT)
  environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
  done = subprocess.run(
      [sys.executable, '-c', 'import robust_jax; from robust_jax import errors; '
       'print(robust_jax.__file__, robust_jax.__version__, errors.__name__)'],
      cwd=tmp_path, env=environment, capture_output=True, text=True)
  file, version, name = done.stdout.split()
  assert Path(file).samefile(PACKAGE / '__init__.py') and name == 'robust_jax.errors'
  assert version[0].isdigit()
