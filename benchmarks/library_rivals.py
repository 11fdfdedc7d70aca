"""The same work by torchattacks, foolbox and adversarial-robustness-toolbox (ART).

They get the network in eval mode, its parameters frozen, in NCHW as their documentation has it, and
are called through their public functions. ART certifies in two runs, of which the first selects
the class: a tenth of the draws, so that an image has as many draws as with the others.
"""

import numpy as np
import torch

from benchmarks.torch_rivals import Rival, about, attacked, logits
from benchmarks.work import MODELS, Job


def build(work, contestant, weights, device):
  """A `Job` of a `Contestant` whose kind is a library's name; see `torch_rivals.build`."""
  rival = Rival(work, contestant, weights, device)
  if work.task == 'certify':
    call, quantities = art_certify(rival), lambda: {}
  else:
    call = {'torchattacks': torchattacks_pgd, 'foolbox': foolbox_pgd, 'art': art_pgd}[
        contestant.kind](rival, 2.5 * work.epsilon / work.num_steps)
    quantities = lambda: attacked(rival.model, call(), *rival.inputs())

  def check():
    return {**logits(rival.model, rival.inputs()[0]), **quantities()}

  return Job(call, rival.wait, check, rival.memory, about(device))


def torchattacks_pgd(rival, step_size):
  import torchattacks
  work = rival.work
  attack = torchattacks.PGD(rival.model, eps=work.epsilon, alpha=step_size, steps=work.num_steps,
                            random_start=False)
  return lambda: attack(*rival.inputs()).cpu()


def foolbox_pgd(rival, step_size):
  import foolbox
  work = rival.work
  model = foolbox.PyTorchModel(rival.model, bounds=(0, 1), device=rival.device)
  attack = foolbox.attacks.LinfPGD(abs_stepsize=step_size, steps=work.num_steps,
                                   random_start=False)
  return lambda: attack.run(model, *rival.inputs(), epsilon=work.epsilon).cpu()


def art_pgd(rival, step_size):
  from art.attacks.evasion import ProjectedGradientDescentPyTorch
  from art.estimators.classification import PyTorchClassifier
  work, shape = rival.work, MODELS[rival.work.model]
  attack = ProjectedGradientDescentPyTorch(
      PyTorchClassifier(**art_arguments(rival)), norm=np.inf, eps=work.epsilon,
      eps_step=step_size, max_iter=work.num_steps, batch_size=work.batch, verbose=False)
  images, labels = rival.images.numpy(), np.eye(shape.num_classes, dtype=np.float32)[rival.labels]
  return lambda: torch.from_numpy(attack.generate(images, labels))


def art_certify(rival):
  from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
  work = rival.work
  selecting = max(work.num_draws // 10, 1)
  smoothed = PyTorchRandomizedSmoothing(**art_arguments(rival), sample_size=selecting,
                                        scale=work.sigma)
  images = rival.images.numpy()
  return lambda: smoothed.certify(images, n=work.num_draws - selecting, batch_size=work.batch)


def art_arguments(rival):
  shape = MODELS[rival.work.model]
  return {'model': rival.model, 'loss': torch.nn.CrossEntropyLoss(), 'clip_values': (0., 1.),
          'input_shape': (shape.channels, shape.side, shape.side), 'nb_classes': shape.num_classes,
          'device_type': rival.device.type.replace('cuda', 'gpu')}
