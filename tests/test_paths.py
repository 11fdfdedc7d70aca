"""~ is the home folder in every path that a config, a flag or a function takes."""

import numpy as np
import pytest

from configs import base
from launch import experiments, flags
from robust_jax import data, workdir
from robust_jax.analysis import __main__ as analysis
from robust_jax.config import sections
from robust_jax.data import __main__ as data_command
from robust_jax.errors import UserError
from robust_jax.models import torch_weights


@pytest.fixture
def home(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  return tmp_path


@pytest.mark.parametrize('field', [
    'weights', 'data.name', 'data.data_dir', 'data.tangents_file', 'data.targets_file',
    'extra.name', 'extra.data_dir', 'extra.labels', 'label.name', 'label.data_dir', 'label.output'])
def test_fields_of_a_config(field, home):
  config = base.get_config()
  config.update_from_flattened_dict({field: '~/some/where.npz'})
  resolved = sections.resolve(config)
  assert sections.flat(resolved)[field] == f'{home}/some/where.npz'
  # A workdir of before, whose config has the tilde, is one of the same experiment.
  saved = {**config.to_dict(), 'data': config.data.to_dict()}
  assert sections.changed_fields(saved, resolved, 'train') == []


def test_flags_of_the_launcher(home):
  (home / 'mine.py').write_text(
      'from configs import base\n\ndef get_config(name=""):\n  return base.get_config()\n')
  found = flags.parse(['launch', '--config=~/mine.py', '--workdir=~/run'])
  assert found.workdir == home / 'run'
  assert experiments.read('~/mine.py:some').names == ['some']
  (home / 'run').mkdir()
  workdir.write_json(home / 'run' / 'config.json',
                     {**sections.resolve(base.get_config()), 'seed': 17})
  assert flags.parse(['launch', '--workdir=~/run']).config.seed == 17


@pytest.mark.parametrize('command, words', [
    (analysis, ['plot', '~/log', '--output=~/a.svg']), (analysis, ['table', '~/log']),
    (analysis, ['runs', '~/log', '--output=~/a']),
    (data_command, ['prepare', 'mnist', '--source=~/a', '--output=~/a.npz'])])
def test_flags_of_the_other_commands(command, words, home):
  found = vars(command.make_parser().parse_args(words))
  assert '~' not in str(found) and str(home) in str(found)


def test_functions(home):
  np.savez(home / 'a.npz', images=np.zeros((2, 4, 4, 1), np.uint8), labels=[0, 1])
  dataset = data.load('~/a.npz', 'train')
  (home / 'labels.txt').write_text('1\n0\n')
  extra = data.extra.load('~/a.npz', labels='~/labels.txt', like=dataset)
  assert dataset.labels.tolist() == [0, 1] and extra.labels.tolist() == [1, 0]
  (home / 'a.pth').write_bytes(b'nothing')
  with pytest.raises(UserError, match='begins with'):
    torch_weights.read('~/a.pth')
  (home / 'run' / 'checkpoints' / 'step_3').mkdir(parents=True)
  with pytest.raises(UserError, match='step_3'):
    workdir.load('~/run')


def test_no_folder_is_called_tilde_where_there_is_no_home(monkeypatch, tmp_path):
  def nobody(uid):
    raise KeyError(uid)
  monkeypatch.delenv('HOME')
  monkeypatch.setattr('pwd.getpwuid', nobody)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match="config.data.data_dir must be a folder, got '~/tfds'"):
    data.load('digits', 'train', data_dir='~/tfds')
  assert not [*tmp_path.iterdir()]
