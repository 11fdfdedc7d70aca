"""The notebook runs from top to bottom, and what it shows holds."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / 'notebooks' / 'quickstart.ipynb'
nbformat = pytest.importorskip('nbformat')
nbclient = pytest.importorskip('nbclient')

# Run after the notebook, in its kernel: what the assertions below are about.
FIGURES = """
import json
perturbed = threat_models.norms(adversarial - data.take(test, np.arange(8), 8).images, 'l2')
print(json.dumps({
    'attacked': attacked.success.tolist(),
    'attacked_norms': threat_models.norms(
        attacked.images - data.take(test, np.arange(8), 8).images, 'l2').tolist(),
    'norms': perturbed.tolist(), 'epsilon': epsilon.tolist(),
    'labels': data.take(test, np.arange(8), 8).labels.tolist(),
    'prediction': certificate.prediction.tolist(), 'radius': certificate.radius.tolist(),
    'p_lower': certificate.p_lower.tolist(), 'counts': certificate.counts.tolist(),
    'found': {factor: classes.tolist() for factor, classes in found.items()},
    'workdir': str(workdir), 'reopened': reopened.radius.tolist(), 'sigma': info['sigma'],
    'radii': radii.tolist(), 'accuracy': accuracy.tolist()}))
"""


@pytest.fixture(scope='module')
def notebook():
  return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope='module')
def executed(tmp_path_factory):
  """The notebook after a run in an empty temporary folder, and the figures of its kernel."""
  folder = tmp_path_factory.mktemp('notebook')
  book = nbformat.read(NOTEBOOK, as_version=4)
  book.cells.append(nbformat.v4.new_code_cell(FIGURES))
  environment = {
      **os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT),
      # A user's kernel has JAX's defaults, not the simulated devices of these tests.
      'XLA_FLAGS': '',
      'TMPDIR': str(folder), 'ROBUST_JAX_WORKDIR': str(folder / 'none'),
      'IPYTHONDIR': str(folder / 'ipython'), 'TFDS_DATA_DIR': str(folder / 'tfds'),
  }
  client = nbclient.NotebookClient(
      book, timeout=240, resources={'metadata': {'path': str(NOTEBOOK.parent)}})
  client.execute(env=environment)
  return book, json.loads(book.cells.pop().outputs[-1].text)


def test_is_clean(notebook):
  nbformat.validate(notebook)
  assert notebook.metadata.kernelspec.name == 'python3'
  for cell in notebook.cells:
    if cell.cell_type == 'code':
      assert cell.execution_count is None and not cell.outputs
      assert max(map(len, cell.source.splitlines())) <= 100
      compile(cell.source, NOTEBOOK.name, 'exec')


def test_every_cell_runs_and_shows_pictures(executed):
  book, _ = executed
  outputs = [output for cell in book.cells for output in cell.get('outputs', [])]
  assert not [output for output in outputs if output.output_type == 'error']
  pictures = [output for output in outputs if 'image/png' in output.get('data', {})]
  assert len(pictures) == 2


def test_attacks_stay_in_their_balls_and_find_something(executed):
  _, figures = executed
  assert np.mean(figures['attacked']) >= 0.5
  assert max(figures['attacked_norms']) <= 1.0 + 1e-5
  assert np.all(np.array(figures['norms']) <= np.array(figures['epsilon']) + 1e-5)
  at_twice = np.array(figures['found']['2.0'])
  assert np.mean(at_twice != figures['prediction']) >= 0.25


def test_certificates_follow_from_their_votes_and_hold_under_attack(executed):
  stats = pytest.importorskip('scipy.stats')
  _, figures = executed
  prediction, radius = np.array(figures['prediction']), np.array(figures['radius'])
  counts = np.array(figures['counts'])
  assert np.mean(prediction == figures['labels']) >= 0.5
  certain = prediction >= 0
  votes = counts[certain, prediction[certain]]
  p_lower = stats.beta.ppf(0.001, votes, 10_000 - votes + 1)
  np.testing.assert_allclose(radius[certain], 0.25 * stats.norm.ppf(p_lower), rtol=1e-6)
  assert np.all(radius[certain] > 0)
  inside = np.array(figures['found']['1.0'])
  assert np.all((inside == prediction) | (inside == -1))


def test_the_trained_run_is_opened_and_its_log_read(executed):
  _, figures = executed
  table = np.genfromtxt(Path(figures['workdir']) / 'certify.tsv', names=True, dtype=None,
                        encoding='utf-8')
  assert len(table) == 20
  expected = [np.mean((table['correct'] == 1) & (table['radius'] >= r)) for r in figures['radii']]
  np.testing.assert_allclose(figures['accuracy'], expected)
  assert figures['accuracy'][0] >= 0.5
  assert figures['sigma'] == 0.25 and max(figures['reopened']) > 0
