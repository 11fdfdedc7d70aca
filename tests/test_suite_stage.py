"""AutoAttack in the attack stage: what it logs, that it goes on after a crash, what it says."""

import functools
import json
from types import SimpleNamespace

import golden_attacks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import analysis, attacks, data, report
from robust_jax.attacks.autoattack import Part
from robust_jax.config import experiment, sections
from robust_jax.errors import UserError
from robust_jax.stages import attack as run_attack
from robust_jax.stages import suite, weights
from robust_jax.workdir import records

SIDE, CLASSES = golden_attacks.SIDE, golden_attacks.CLASSES
PARAMS = golden_attacks.weights(2)
IMAGES = np.random.default_rng(3).uniform(size=(21, SIDE, SIDE, 1)).astype(np.float32)
LABELS = golden_attacks.network(PARAMS, IMAGES).argmax(-1).astype(np.int32)
LABELS[:2] = (LABELS[:2] + 1) % CLASSES
NETWORK = jax.tree_util.Partial(
    functools.partial(golden_attacks.network, np=jnp),
    {name: jnp.asarray(value, jnp.float32) for name, value in PARAMS.items()})
EPSILONS = (0.05, 0.02)
QUICK = functools.partial(attacks.apgd_attack, num_steps=4)
SUITE = (Part('apgd-ce', QUICK, 1),
         Part('apgd-t', functools.partial(QUICK, loss='dlr', num_targets=3), 3))
# Compiled once for all tests.
FINDERS = functools.cache(suite._finder)


@pytest.fixture
def stage(monkeypatch):
  """A function of a folder that runs the stage on it, at fewer steps, and returns its facts."""
  monkeypatch.setattr(suite, 'parts', lambda *args: SUITE)
  monkeypatch.setattr(suite, '_finder', FINDERS)

  def run_it(folder, logits_fn=NETWORK, **fields):
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(weights, 'load', lambda run, workdir: (logits_fn, {}, None))
    RUN.config['attack'].update({'version': 'standard', 'norm': 'linf'} | fields)
    return run_attack(RUN, folder)['autoattack']

  return run_it


class _Run(SimpleNamespace):
  __hash__ = object.__hash__


SETTINGS = sections.EvaluationSettings(epsilons=EPSILONS, stride=1, gallery=3, batch_size=8)
RUN = _Run(
    evaluation=SETTINGS, attack=None, attacked_sigma=0., trainable=False, devices=jax.devices()[:2],
    extra=SimpleNamespace(share=0.), key=lambda use: jax.random.key(0), shard=(0, 1),
    test_data=data.Dataset(
        name='cifar10', split='test', images=IMAGES, labels=LABELS, class_names=tuple('abcde'),
        mean=(0.,), std=(1.,)),
    config={'attack': {'name': 'autoattack'}, 'seed': 0, 'model': {'name': 'wrn_28_10'},
            'evaluation': SETTINGS._asdict()})


def contents(folder):
  with np.load(folder / 'gallery.npz') as gallery:
    return (folder / 'attack.jsonl').read_text(), set(gallery['index'].tolist())


def test_what_is_logged_and_said(stage, tmp_path, capsys):
  facts = stage(tmp_path)
  log = analysis.read_attack(tmp_path / 'attack.jsonl')
  np.testing.assert_array_equal(log.idx, np.arange(21))
  assert (log.clean == log.label).sum() == 19
  robust = analysis.robust_accuracy(log)
  assert 0 < robust[0] < robust[1] < 19 / 21
  lines = [json.loads(line) for line in (tmp_path / 'attack.jsonl').read_text().splitlines()][1:]
  assert {line['by'] for line in lines} == {'clean', 'apgd-ce', 'apgd-t', None}
  # What a smaller radius has broken is broken at a larger one, as the same class.
  at_larger, at_smaller = log.adversarial.T
  broken = at_smaller != log.label
  np.testing.assert_array_equal(at_larger[broken], at_smaller[broken])
  # Cumulative, part by part, as in the log.
  assert [part['name'] for part in facts['parts']] == ['clean', *2 * ['apgd-ce', 'apgd-t']]
  assert [part['epsilon'] for part in facts['parts']] == [None, 0.02, 0.02, 0.05, 0.05]
  accuracies = [part['robust_accuracy'] for part in facts['parts']]
  np.testing.assert_allclose([accuracies[0], accuracies[2], accuracies[4]],
                             [19 / 21, robust[1], robust[0]])
  assert sum(part['broken'] for part in facts['parts']) == round(21 * (1 - robust[0]))
  printed = capsys.readouterr().out
  assert f'linf 0.02: robust accuracy after apgd-t: {robust[1]:.2%}' in printed
  assert f'report a robust accuracy of {robust[0]:.2%} (95% interval ' in printed
  assert 'AutoAttack standard' in printed and '21 of the 21 images of cifar10 test' in printed
  entry = json.loads((tmp_path / 'robustbench.json').read_text())
  assert entry['autoattack_acc'] == f'{100 * robust[0]:.2f}' and entry['clean_acc'] == '90.48'
  assert entry['eps'] == '0.05' and entry['architecture'] == 'wrn_28_10'
  with np.load(tmp_path / 'gallery.npz') as gallery:
    assert len(gallery['index']) == 3
    assert (np.abs(gallery['adversarial'] - gallery['images']) <= 0.02 + 1e-6).all()
    np.testing.assert_array_equal(NETWORK(gallery['adversarial']).argmax(-1), gallery['predicted'])


@pytest.mark.parametrize('batches', [2, 5, 8])
def test_it_goes_on_after_a_crash(batches, stage, tmp_path, monkeypatch):
  stage(tmp_path / 'whole')
  append, left = records.append, iter(range(batches))

  def crashing(path, *entries):
    next(left)  # StopIteration when they are used up.
    append(path, *entries)

  with monkeypatch.context() as patched:
    patched.setattr(records, 'append', crashing)
    with pytest.raises(StopIteration):
      stage(tmp_path / 'crashed')
  progress = tmp_path / 'crashed' / 'attack.progress.jsonl'
  before = progress.read_text()
  assert len(before.splitlines()) == 1 + batches
  progress.write_text(before + '{"group": 1, "seco')  # Cut off, as by kill -9.
  assert not len(analysis.read_attack(tmp_path / 'crashed' / 'attack.jsonl').idx)
  stage(tmp_path / 'crashed')
  assert progress.read_text().startswith(before)
  assert contents(tmp_path / 'crashed')[0] == contents(tmp_path / 'whole')[0]


def test_a_workdir_of_other_settings_is_refused(stage, tmp_path):
  stage(tmp_path)
  (tmp_path / 'attack.jsonl').unlink()
  with pytest.raises(UserError, match='attack.progress.jsonl: attack is .*l2'):
    stage(tmp_path, norm='l2')


def test_flags_are_said_and_kept(stage, tmp_path, capsys):
  saturated = jax.tree_util.Partial(lambda f, x: 1e4 * f(x), NETWORK)
  facts = stage(tmp_path, saturated)
  assert 'zero_gradient' in facts['flags']
  assert 'attack: warning: zero_gradient: ' in capsys.readouterr().out
  assert json.loads((tmp_path / 'robustbench.json').read_text())['unreliable']


def test_the_report_has_parts_warnings_and_the_number(stage, tmp_path):
  facts = stage(tmp_path, jax.tree_util.Partial(lambda f, x: 1e4 * f(x), NETWORK))
  records.write_json(tmp_path / 'stages.json', {'attack': {
      'status': 'done', 'seconds': 1., 'config': {}, 'autoattack': records.plain(facts)}})
  page = report.build(tmp_path).read_text()
  assert 'AutoAttack' in page and 'Warning: zero_gradient: ' in page
  assert 'Report a robust accuracy of ' in page and '<td class="v">apgd-t</td>' in page


@pytest.mark.parametrize('changes, message', [
    (dict(version='rand'), "config.attack: version .*'rand'"),
    (dict(version='apgd-cf'), "config.attack: version .*'apgd-cf'"),
    (dict(norm='l3'), "config.attack.norm .*'l3'"),
    (dict(sigma=0.5), 'config.evaluation.sigma .*autoattack.* 0.5'),
    (dict(transfer_from='runs/x'), "config.evaluation.transfer_from .*autoattack.*'runs/x'")])
def test_a_config_that_cannot_be(changes, message):
  from configs import digits
  config = digits.pgd()
  config.attack = sections.component('attack', 'autoattack', version='apgd-ce')
  for name, value in changes.items():
    config['attack' if name in config.attack else 'evaluation'][name] = value
  with pytest.raises(UserError, match=message):
    experiment.build(sections.resolve(config))
