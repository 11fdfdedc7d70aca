"""The example of a method in CONTRIBUTING.md runs as it is printed."""

import functools
import importlib
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tiny_training

from robust_jax import models
from robust_jax.config import experiment, sections
from robust_jax.training import methods
from robust_jax.types import Progress

ROOT = Path(__file__).parents[1]
KEY = jax.random.key(5)


def test_the_example_method_and_its_experiment(monkeypatch):
  text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
  method_code, config_code = (textwrap.dedent(block.split('```')[0])
                              for block in text.split('```python\n')[1:])
  module, configs = {}, vars(importlib.import_module('configs.digits')).copy()
  exec(method_code, module)
  model = models.create('mlp', 3, hidden=())
  params = models.init(KEY, model, (4, 4, 1))['params']
  run = functools.partial(
      tiny_training.run_method, network=models.network(model), params=params,
      batch=tiny_training.random_batch(16), key=KEY,
      progress=Progress(jnp.asarray(0), jnp.asarray(0)))
  output, _ = run(functools.partial(module['confidence_penalty'], weight=0.3))
  plain, _ = run(methods.standard)
  np.testing.assert_allclose(output.loss, plain.loss - 0.3 * output.metrics['entropy'], rtol=1e-4,
                             atol=1e-6)
  monkeypatch.setitem(methods.METHODS, 'confidence_penalty', module['confidence_penalty'])
  exec(config_code, configs)
  built = experiment.build(sections.resolve(configs['confidence_penalty']()), jax.devices()[:1])
  assert built.method.keywords['weight'] == 0.2
