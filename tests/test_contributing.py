"""The examples of how to add something run as they are printed."""

import functools
import importlib
import json
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tiny_training

from launch import run as launcher
from robust_jax import models
from robust_jax.config import experiment, sections
from robust_jax.training import methods
from robust_jax.types import Progress

ROOT = Path(__file__).parents[1]
KEY = jax.random.key(5)


def blocks(page):
  text = (ROOT / page).read_text(encoding='utf-8')
  return [textwrap.dedent(block.split('```')[0]) for block in text.split('```python\n')[1:]]


def test_the_example_method_and_its_experiment(monkeypatch):
  method_code, config_code = blocks('CONTRIBUTING.md')
  module, configs = {}, vars(importlib.import_module('configs.digits')).copy()
  exec(method_code, module)
  model = models.create('mlp', 3, hidden=())
  params = models.init(KEY, model, (4, 4, 1))['params']
  run = functools.partial(
      tiny_training.run_method, network=models.network(model), params=params,
      batch=tiny_training.random_batch(16), key=KEY,
      progress=Progress(jnp.asarray(0), jnp.asarray(0), jnp.asarray(0.)))
  output, _ = run(functools.partial(module['confidence_penalty'], weight=0.3))
  plain, _ = run(methods.standard)
  np.testing.assert_allclose(output.loss, plain.loss - 0.3 * output.metrics['entropy'], rtol=1e-4,
                             atol=1e-6)
  monkeypatch.setitem(methods.METHODS, 'confidence_penalty', module['confidence_penalty'])
  exec(config_code, configs)
  built = experiment.build(sections.resolve(configs['confidence_penalty']()), jax.devices()[:1])
  assert built.method.keywords['weight'] == 0.2


def test_the_examples_of_a_method_an_attack_a_model_and_a_dataset_are_a_run(tmp_path, monkeypatch):
  [attack] = [block for block in blocks('docs/attacks.md') if 'def attack(' in block]
  [dataset] = [block for block in blocks('docs/data.md') if 'np.savez(' in block]
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'my_module', raising=False)
  exec(dataset, {})
  code = [blocks('docs/models.md')[0], attack, blocks('CONTRIBUTING.md')[0]]
  Path('my_module.py').write_text('\n'.join(code))
  assert launcher.main([
      'launch', f'--config={ROOT}/configs/digits.py:pgd', '--workdir=run', '--devices=1',
      '--config.data.name=mine.npz', '--config.model.name=my_module:Net', '--config.model.width=4',
      '--config.method.name=my_module:confidence_penalty', '--config.method.weight=0.05',
      '--config.attack.name=my_module:attack', '--config.attack.norm=l2',
      '--config.attack.num_steps=5', '--stages=train,attack',
      '--config.train.num_epochs=2', '--config.train.batch_size=100', '--config.train.log_every=5',
      '--config.evaluation.epsilons=(0.1, 5.)', '--config.evaluation.stride=5']) == 0
  assert 0 < json.loads(Path('run/metrics.jsonl').read_text().splitlines()[0])['entropy'] < 1.1
  _, *found = [json.loads(line) for line in Path('run/attack.jsonl').read_text().splitlines()]
  labels, clean, attacked = (np.array([line[name] for line in found])
                             for name in ('label', 'clean', 'adversarial'))
  # It has learned which colour is brighter; by 0.1 nobody makes that another one, by 5 anyone.
  np.testing.assert_array_equal(clean, labels)
  np.testing.assert_array_equal(attacked[:, 0], labels)
  assert len(labels) == 20 and np.mean(attacked[:, 1] == labels) < 0.2
