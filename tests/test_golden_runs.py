"""Digits runs end with the bits that they ended with when golden/digits_runs.json was written."""

import json

import golden_runs
import pytest

QUICK = ('smoothadv', 'sequential')


@pytest.mark.parametrize('name', [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in golden_runs.RUNS])
def test_a_run_ends_as_it_did(name, tmp_path):
  golden_runs.launch(name, tmp_path / 'run')
  golden = json.loads(golden_runs.GOLDEN.read_text())
  assert not golden_runs.differences(name, golden_runs.results(tmp_path / 'run'), golden)
