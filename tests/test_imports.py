"""Who may import whom: the maths knows nothing of configs, data, files or the launcher."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import architecture_picture
from docs.architecture_picture import imported

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'robust_jax'

# Each layer may import itself and the layers before it.
LAYERS = [
    {'types', 'errors', 'terminal', 'inputs', 'schema', 'keys', 'named', 'cpu'},
    {'backend', 'devices'},
    {'losses', 'smoothing', 'models', 'data'},
    {'workdir'},
    {'attacks', 'certification', 'bounds'},
    {'training'},
    {'config'},
    {'stages', 'analysis', 'report'},
    {'studies'},
]
MATHS = ['inputs', 'losses', 'smoothing', 'keys', 'types', 'attacks', 'bounds',
         'certification/anytime', 'certification/bounds', 'certification/certify',
         'certification/fixed', 'certification/radius_grid', 'certification/rules',
         'certification/sampling', 'certification/stream', 'training/methods', 'training/step',
         'training/schedules']
MATHS_MAY_IMPORT = {'jax', 'numpy', 'scipy', 'optax', 'flax', 'chex', 'robust_jax'}


def files(name):
  path = PACKAGE / name
  return sorted(path.rglob('*.py')) if path.is_dir() else [path.with_suffix('.py')]


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
      if words[0] == 'robust_jax' and len(words) > 1 and words[1] != '__version__':
        assert layer(words[1]) <= layer(part), f'{path} imports {name}'


def test_the_picture_is_of_these_imports_which_have_no_circle():
  graph = architecture_picture.graph()
  text = architecture_picture.PICTURE.read_text(encoding='utf-8')
  shown = {part: set(names.split(', ')) - {''}
           for part, names in re.findall('<title>(.*): (.*)</title>', text)}
  assert shown == graph, 'python docs/architecture_picture.py makes it again'
  assert graph['launch'] >= {'configs', 'stages'} and not graph['errors']  # It sees imports.
  height = {name: float(y) for y, name in re.findall(' y="([0-9]+)">([a-z_]+)</text>', text)}
  for part, names in graph.items():
    for name in names:
      assert height[part] < height[name], f'{part} imports {name}'


def test_a_circle_of_imports_has_no_picture():
  with pytest.raises(AssertionError, match=r"circle of imports among \['a', 'b', 'c'\]"):
    architecture_picture.rows({'a': {'b'}, 'b': {'d', 'c'}, 'c': {'a'}, 'd': set()})


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
