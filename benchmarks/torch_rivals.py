"""The tasks in PyTorch, written for speed within what its users write: eager mode, one process.

The parameters ask for no gradient during attacks; tensors and weights have the contestant's
layout; certification runs in inference mode; nothing waits for the device but the end of a block
and, in attacks, the result, which every contestant brings to the host.
"""

import copy
import os
import time

import numpy as np
import torch
from torch.nn import functional

from benchmarks import torch_models
from benchmarks.work import MODELS, Job, batch


def build(work, contestant, weights, device):
  """A `Job` of a `Contestant`: `weights` is a file of a state_dict, `device` 'cpu' or 'gpu'."""
  rival = Rival(work, contestant, weights, device)
  call, check = {
      'pgd10': rival.pgd, 'train': rival.train, 'smoothadv': rival.train, 'certify': rival.certify,
  }[work.task]()
  return Job(call, rival.wait, check, rival.memory, about(device))


def about(device):
  """Threads and settings, for the results file."""
  settings = {name: value for name, value in os.environ.items()
              if name.startswith(('OMP', 'GOMP', 'KMP', 'MALLOC', 'LD_PRELOAD', 'DNNL', 'ONEDNN'))}
  gpu = {'gpu': torch.cuda.get_device_name()} if device == 'gpu' else {}
  return {'threads': torch.get_num_threads(), 'environment': settings, **gpu}


def prepare(contestant, device):
  """Threads and the precision of matrix products; returns the torch device."""
  if device == 'cpu':
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch.device('cpu')
  torch.backends.cudnn.benchmark = True
  torch.backends.cudnn.allow_tf32 = contestant.precision != 'float32'
  torch.backends.cuda.matmul.allow_tf32 = contestant.precision != 'float32'
  return torch.device('cuda')


class Rival:
  """A network with the weights of a file, and the tasks on it."""

  def __init__(self, work, contestant, weights, device):
    self.work, self.bfloat16 = work, contestant.precision == 'bfloat16'
    self.device = prepare(contestant, device)
    self.format = {'channels_last': torch.channels_last,
                   'contiguous': torch.contiguous_format}[contestant.layout]
    self.model = torch_models.create(work.model)
    self.model.load_state_dict(torch.load(weights, weights_only=True))
    self.model.eval().requires_grad_(False)
    self.model.to(self.device, memory_format=self.format)
    self.compiled = contestant.compiled
    images, labels = batch(work)
    self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(
        memory_format=self.format)
    self.labels = torch.from_numpy(labels).long()
    if device == 'gpu':
      self.images, self.labels = self.images.pin_memory(), self.labels.pin_memory()

  def wait(self):
    if self.device.type == 'cuda':
      torch.cuda.synchronize()

  def memory(self):
    return torch.cuda.max_memory_allocated() if self.device.type == 'cuda' else None

  def inputs(self):
    """The batch on the device, as each call receives it."""
    return (self.images.to(self.device, non_blocking=True),
            self.labels.to(self.device, non_blocking=True))

  def noise(self, *rows):
    """Standard normals [*rows, C, H, W], drawn in the order in which they lie in memory."""
    height, width, channels = MODELS[self.work.model].image_shape
    if self.format == torch.channels_last:
      return torch.randn(*rows, height, width, channels, device=self.device).movedim(-1, -3)
    return torch.randn(*rows, channels, height, width, device=self.device)

  def frozen(self):
    """The network as a function for attacks and certification, its weights cast once."""
    model = self.model
    if self.bfloat16:
      model = copy.deepcopy(model).to(torch.bfloat16)
      cast = lambda x: network(x.to(torch.bfloat16)).float()
    else:
      cast = lambda x: network(x)
    network = torch.compile(model) if self.compiled else model
    return cast

  def autocast(self):
    return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

  def pgd(self):
    """PGD in linf from the images themselves."""
    work, logits_fn = self.work, self.frozen()
    step_size = 2.5 * work.epsilon / work.num_steps

    def attack(num_steps):
      images, labels = self.inputs()
      x = images
      for _ in range(num_steps):
        x = x.detach().requires_grad_()
        loss = functional.cross_entropy(logits_fn(x), labels, reduction='sum')
        gradient, = torch.autograd.grad(loss, x)
        with torch.no_grad():
          delta = x + step_size * gradient.sign() - images
          x = (images + delta.clamp_(-work.epsilon, work.epsilon)).clamp_(0, 1)
      return x.cpu()

    def check():
      return {**logits(logits_fn, self.inputs()[0]), 'first_step': rows_last(attack(1)),
              **attacked(logits_fn, attack(work.num_steps), *self.inputs())}

    return lambda: attack(work.num_steps), check

  def train(self):
    """One step of cross-entropy training ('train') or of SmoothAdv."""
    def check():
      if not self.work.checks_training:
        return {}
      model, noiseless = self.training_step(0.)
      loss = noiseless()
      images, _ = self.inputs()
      return {**logits(self.model, images), 'loss': np.array(float(loss)),
              'trained_logits': logits(model.eval(), images)['logits']}

    return self.training_step(self.work.sigma)[1], check

  def training_step(self, sigma):
    """(a copy of the network, () -> loss of a step of SGD on it)."""
    work, model = self.work, copy.deepcopy(self.model)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    network = torch.compile(model) if self.compiled else model

    def step():
      images, labels = self.inputs()
      if work.task == 'smoothadv':
        noise = self.noise(work.num_noise, work.batch).mul_(sigma)
        model.eval().requires_grad_(False)
        images = self.smoothadv_attack(network, images, labels, noise)
        images, labels = (images + noise).flatten(0, 1), labels.repeat(work.num_noise)
      model.train().requires_grad_(True)
      optimizer.zero_grad(set_to_none=True)
      with self.autocast():
        loss = functional.cross_entropy(network(images).float(), labels)
      loss.backward()
      optimizer.step()
      return loss.detach()

    return model, step

  def smoothadv_attack(self, network, images, labels, noise):
    """PGD in l2 on -log mean_i softmax(network(x + noise_i))_y, as Salman et al. 2019.

    `noise` is [num_noise, batch, C, H, W].
    """
    work = self.work
    step_size = 2 * work.epsilon / work.num_steps
    tiled_labels = labels.repeat(work.num_noise)
    x = images
    for _ in range(work.num_steps):
      x = x.detach().requires_grad_()
      with self.autocast():
        output = network((x + noise).flatten(0, 1)).float()
      log_probs = -functional.cross_entropy(output, tiled_labels, reduction='none')
      loss = -torch.logsumexp(log_probs.view(work.num_noise, -1), 0).sum()
      gradient, = torch.autograd.grad(loss, x)
      with torch.no_grad():
        x = (x + step_size * gradient / length(gradient).clamp_min_(1e-30)).clamp_(0, 1)
        delta = x - images
        x = images + delta * (work.epsilon / length(delta).clamp_min_(1e-30)).clamp_max_(1)
    return x.detach()

  def certify(self):
    """Votes of the noisy copies of some images."""
    work, logits_fn = self.work, self.frozen()

    @torch.inference_mode()
    def count(sigma):
      images, _ = self.inputs()
      votes = []
      for image in images:
        for start in range(0, work.num_draws, work.batch):
          rows = self.noise(min(work.batch, work.num_draws - start)).mul_(sigma).add_(image)
          output = logits_fn(rows)
          votes.append(torch.bincount(output.argmax(1), minlength=output.shape[1]))
      return torch.stack(votes).view(len(images), -1, output.shape[1]).sum(1).cpu()

    return lambda: count(work.sigma), lambda: {
        **logits(logits_fn, self.inputs()[0]), 'counts': count(0.).numpy()}


def length(rows):
  """The l2 norm of each row, [batch, 1, 1, 1]."""
  return torch.linalg.vector_norm(rows, dim=(1, 2, 3), keepdim=True)


def logits(logits_fn, images):
  with torch.no_grad():
    return {'logits': logits_fn(images).float().cpu().numpy()}


def attacked(logits_fn, adversarial, images, labels):
  """The attack's result, and the mean cross-entropy that it reaches."""
  with torch.no_grad():
    loss = functional.cross_entropy(logits_fn(adversarial.to(images)), labels)
  return {'adversarial': rows_last(adversarial), 'adversarial_loss': np.array(float(loss))}


def rows_last(images):
  """[batch, C, H, W] tensor -> [batch, H, W, C] array."""
  return np.ascontiguousarray(images.detach().cpu().permute(0, 2, 3, 1).numpy())


def peak(contestant, device, seconds):
  """(FLOP/s of a large matrix product, bytes/s of a large copy, read and written)."""
  device = prepare(contestant, device)
  size = 2048 if device.type == 'cpu' else 8192
  dtype = torch.bfloat16 if contestant.precision == 'bfloat16' else torch.float32
  a, b = (torch.rand(size, size, device=device, dtype=dtype) for _ in range(2))
  source = torch.rand(2**24 if device.type == 'cpu' else 2**28, device=device)
  target = torch.empty_like(source)
  return (2 * size**3 / best(lambda: torch.mm(a, b), device, seconds),
          2 * source.nbytes / best(lambda: target.copy_(source), device, seconds))


def best(function, device, seconds):
  """The shortest time of a call, in seconds."""
  times, begun = [], time.perf_counter()
  while not times or time.perf_counter() - begun < seconds:
    start = time.perf_counter()
    function()
    if device.type == 'cuda':
      torch.cuda.synchronize()
    times.append(time.perf_counter() - start)
  return min(times)
