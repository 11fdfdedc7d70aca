"""Iterates of the public AutoAttack package on a small network, which ours have to pass through.

  pip install torch pyautoattack==0.2.0 foolbox==3.3.4
  python tests/golden_attacks.py

writes golden/attacks.npz: weights, images, labels and starts, and what the package's network was
asked at some of its steps. Without torch only `network` is of use, which the tests compare with.
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / 'golden' / 'attacks.npz'
NUM_STEPS, KEPT = 60, (1, 2, 5, 13, 14, 25, 40, 60)
SIDE, CLASSES, BATCH = 6, 5, 8
# So small that the label stays among the two largest logits: where it is the third, the DLR loss is
# constant, and its gradient is rounding.
RADII = {'linf': 0.06, 'l2': 0.2, 'l1': 0.6}
NAMES = {'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}
LOSSES = {'cross_entropy': 'ce', 'dlr': 'dlr'}


FAB_KEPT = (1, 5, 20, 60)
CARLINI_WAGNER = dict(num_steps=80, num_constants=4, initial_constant=0.1, learning_rate=0.05)
# Whether there are targets, and the confidence.
CARLINI_WAGNER_KINDS = {'any': (False, 0.), 'targeted': (True, 0.), 'confident': (False, 0.5)}
QUERIES = 300
# At which the package leaves about half of the images as they are.
SQUARE_RADII = {'linf': 0.04, 'l2': 0.5, 'l1': 2.}


def weights(seed=0, pixels=SIDE**2):
  draw = np.random.default_rng(seed).normal
  return {'first': draw(size=(pixels, 24)) / pixels**0.5, 'bias': draw(size=24) / 4,
          'second': draw(size=(24, CLASSES)) / 2}


def network(params, images, np=np):
  """Two layers with tanh between them; `np` may be jax.numpy or torch."""
  rows = images.reshape(len(images), -1)
  return np.tanh((rows - 0.5) @ params['first'] + params['bias']) @ params['second']


def square_problem():
  """(weights, images [300, 15, 15, 2], labels) that the random search is compared on."""
  params = weights(2, 15 * 15 * 2)
  images = np.random.default_rng(3).uniform(size=(300, 15, 15, 2))
  return params, images, network(params, images).argmax(-1)


# {norm: (radius, robust images of the 120 after the package's 'standard')}, as `main` prints them.
SUITE = {'linf': (0.02, 16), 'l2': (0.17, 33), 'l1': (0.8, 36)}


def suite_problem():
  """(weights, images [120, 15, 15, 1], labels of ten classes) that the suite is compared on."""
  rng, pixels, hidden, classes = np.random.default_rng(0), 15 * 15, 32, 10
  params = {'first': rng.normal(size=(pixels, hidden)) / pixels**0.5 * 1.5,
            'bias': rng.normal(size=hidden) / 4,
            'second': rng.normal(size=(hidden, classes)) / 2}
  images = rng.uniform(size=(120, 15, 15, 1))
  labels = network(params, images).argmax(-1)
  labels[::40] = (labels[::40] + 1) % classes
  return params, images.astype(np.float32), labels


def _pulled_back(moved, saved, classes):
  """FAB's next iterate after it has asked for the class of `moved`."""
  wrong = (classes != saved['labels'])[:, None, None, None]
  return np.where(wrong, saved['images'] + 0.9 * (moved - saved['images']), moved)


def main():
  import foolbox
  import torch
  from pyautoattack import AutoAttack, autopgd_base
  from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
  from pyautoattack.fab_pt import FABAttack_PT
  from pyautoattack.square import SquareAttack

  # Of an l1 perturbation it counts entries that only rounding has left different from zero.
  autopgd_base.L0_norm = lambda x: (x.abs() > 1e-5).view(len(x), -1).sum(-1)

  rng = np.random.default_rng(1)
  params = weights()
  images = rng.uniform(size=(BATCH, SIDE, SIDE, 1)) * rng.integers(0, 2, (BATCH, SIDE, SIDE, 1))
  labels = network(params, images).argmax(-1)
  targets = np.argsort(-network(params, images), axis=-1)[:, 2]
  saved = {'images': images, 'labels': labels, 'targets': targets,
           **{f'weights/{name}': value for name, value in params.items()}}
  on_torch = {name: torch.tensor(value) for name, value in params.items()}
  x, y = torch.tensor(images), torch.tensor(labels)
  for norm, epsilon in RADII.items():
    start = np.clip(images + rng.uniform(-1, 1, images.shape) * (
        epsilon / {'linf': 1, 'l2': SIDE, 'l1': SIDE**2}[norm]), 0, 1)
    saved[f'{norm}/start'] = start
    for loss in (*LOSSES, 'targeted_dlr'):
      asked = []

      def model(images, asked=asked):
        asked.append(images.detach().numpy().copy())
        return network(on_torch, images, torch)

      kind = APGDAttack_targeted if loss == 'targeted_dlr' else APGDAttack
      attack = kind(model, n_iter=NUM_STEPS, norm=NAMES[norm], eps=epsilon, seed=0, device='cpu')
      attack.init_hyperparam(x)
      if loss == 'targeted_dlr':
        attack.loss, attack.y_target = 'dlr-targeted', torch.tensor(targets)
      else:
        attack.loss = LOSSES[loss]
      best, right, objective, found = attack.attack_single_run(x, y, x_init=torch.tensor(start))
      assert len(asked) == NUM_STEPS + 1
      name = f'{norm}/{loss}'
      saved[f'{name}/iterates'] = np.stack([asked[step] for step in KEPT])
      saved[f'{name}/best'], saved[f'{name}/found'] = best.detach().numpy(), found.detach().numpy()
      saved[f'{name}/objective'] = objective.numpy()
      saved[f'{name}/success'] = ~right.numpy()
  params, images, labels = square_problem()
  on_torch = {name: torch.tensor(value) for name, value in params.items()}
  model = lambda images: network(on_torch, images.permute(0, 2, 3, 1), torch)
  x, y = torch.tensor(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)
  for norm, epsilon in SQUARE_RADII.items():
    attack = SquareAttack(model, norm=NAMES[norm], n_queries=QUERIES, eps=epsilon, p_init=0.8,
                          seed=0, device='cpu', resc_schedule=False)
    found = attack.perturb(x, y)
    saved[f'square/{norm}'] = np.mean((model(found).argmax(-1) == y).numpy())
    print('square', norm, saved[f'square/{norm}'])
  params, images, labels = suite_problem()
  on_torch = {name: torch.tensor(value, dtype=torch.float32) for name, value in params.items()}
  x, y = torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(labels)

  class Module(torch.nn.Module):
    def forward(self, images):
      return network(on_torch, images.permute(0, 2, 3, 1), torch)

  for norm, (epsilon, _) in SUITE.items():
    package = AutoAttack(Module(), norm=NAMES[norm], eps=epsilon, seed=0)
    classes = package.run_standard_evaluation(x, y, batch_size=120)[1]
    print('suite', norm, int((classes == y).sum()))
  # FAB is in float32 by itself, and what rounding changes grows with the steps.
  torch.Tensor.float = torch.Tensor.double
  torch.set_default_dtype(torch.float64)
  params = weights()
  on_torch = {name: torch.tensor(value) for name, value in params.items()}
  x, y = torch.tensor(saved['images']), torch.tensor(saved['labels'])
  for norm, epsilon in RADII.items():
    for targeted in (False, True):
      asked = []

      def model(images, asked=asked):
        asked.append(images.detach().numpy().copy())
        return network(on_torch, images, torch)

      attack = FABAttack_PT(model, norm=NAMES[norm], n_iter=max(FAB_KEPT), eps=epsilon)
      attack.target_class = 3  # The third largest logit, as `targets`.
      torch.manual_seed(0)
      best = attack.attack_single_run(x, y, use_rand_start=True, is_targeted=targeted)
      # The clean images once or twice, then in each step for gradients and for the class.
      iterates = asked[2 if targeted else 1::2]
      iterates.append(_pulled_back(asked[-1], saved, network(params, asked[-1]).argmax(-1)))
      name = f"fab/{norm}/{'targeted' if targeted else 'any'}"
      saved[f'fab/{norm}/start'] = iterates[0]
      saved[f'{name}/iterates'] = np.stack([iterates[step] for step in FAB_KEPT])
      saved[f'{name}/best'] = best.numpy()
  model = foolbox.PyTorchModel(torch.nn.Module().eval(), bounds=(0, 1), device='cpu')
  model._model = lambda images: network(on_torch, images, torch)
  attack = foolbox.attacks.L2CarliniWagnerAttack(
      binary_search_steps=CARLINI_WAGNER['num_constants'], steps=CARLINI_WAGNER['num_steps'],
      stepsize=CARLINI_WAGNER['learning_rate'], initial_const=CARLINI_WAGNER['initial_constant'],
      abort_early=False)
  for kind, (targeted, confidence) in CARLINI_WAGNER_KINDS.items():
    attack.confidence = confidence
    goal = (foolbox.criteria.TargetedMisclassification(torch.tensor(saved['targets'])) if targeted
            else foolbox.criteria.Misclassification(y))
    saved[f'carlini_wagner/{kind}'] = attack.run(model, x, goal).numpy()
  np.savez_compressed(FILE, **{name: np.float32(value) if value.dtype == np.float64 else value
                               for name, value in saved.items()})
  print(FILE, FILE.stat().st_size)


if __name__ == '__main__':
  main()
