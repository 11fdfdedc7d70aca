"""Writes the golden files of tests/test_torch_weights.py: what PyTorch saves and computes.

  pip install torch==2.13.0 numpy safetensors
  python tests/golden/make_torch_weights.py

The networks are those of the code bases that users' checkpoints come from, in the same layers with
the same names; their weights are those of `seeded`, so that only names, shapes and logits are
stored, in torch_logits.json. The files torch_*.pth and torch_*.safetensors are small checkpoints.
"""

import argparse
import collections
import datetime
import json
import pathlib
from pathlib import Path

import numpy as np
import safetensors.torch
import seeded
import torch
from torch import nn
from torch.nn import functional

FOLDER = Path(__file__).parent


def conv(features_in, features, size, stride=1):
  return nn.Conv2d(features_in, features, size, stride, size // 2, bias=False)


# ResNets as in torchvision, and for CIFAR as in pytorch-classification or pytorch-cifar.


class BasicBlock(nn.Module):
  expansion = 1

  def __init__(self, features_in, width, stride, shortcut):
    super().__init__()
    self.conv1, self.bn1 = conv(features_in, width, 3, stride), nn.BatchNorm2d(width)
    self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
    self.add_module(shortcut, downsample(features_in, width, stride))
    self.name = shortcut

  def forward(self, x):
    out = functional.relu(self.bn1(self.conv1(x)))
    return functional.relu(self.bn2(self.conv2(out)) + getattr(self, self.name)(x))


class Bottleneck(nn.Module):
  expansion = 4

  def __init__(self, features_in, width, stride, shortcut):
    super().__init__()
    self.conv1, self.bn1 = conv(features_in, width, 1), nn.BatchNorm2d(width)
    self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
    self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
    self.add_module(shortcut, downsample(features_in, 4 * width, stride))
    self.name = shortcut

  def forward(self, x):
    out = functional.relu(self.bn1(self.conv1(x)))
    out = functional.relu(self.bn2(self.conv2(out)))
    return functional.relu(self.bn3(self.conv3(out)) + getattr(self, self.name)(x))


def downsample(features_in, features, stride):
  if stride == 1 and features_in == features:
    return nn.Identity()
  return nn.Sequential(conv(features_in, features, 1, stride), nn.BatchNorm2d(features))


class ResNet(nn.Module):

  def __init__(self, block, num_blocks, width, num_classes, large_images=False,
               names=('downsample', 'fc')):
    super().__init__()
    shortcut, self.last = names
    self.conv1 = conv(3, width, 7, 2) if large_images else conv(3, width, 3)
    self.bn1 = nn.BatchNorm2d(width)
    self.maxpool = nn.MaxPool2d(3, 2, 1) if large_images else nn.Identity()
    self.stages, features = [], width
    for stage, blocks in enumerate(num_blocks):
      layers = []
      for number in range(blocks):
        stride = 2 if stage > 0 and number == 0 else 1
        layers.append(block(features, width * 2**stage, stride, shortcut))
        features = width * 2**stage * block.expansion
      self.stages.append(f'layer{stage + 1}')
      self.add_module(self.stages[-1], nn.Sequential(*layers))
    self.add_module(self.last, nn.Linear(features, num_classes))

  def forward(self, x):
    x = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
    for stage in self.stages:
      x = getattr(self, stage)(x)
    return getattr(self, self.last)(x.mean((2, 3)))


# Pre-activation ResNets as in pytorch-cifar, TRADES and deepmind-research.


class PreActBlock(nn.Module):

  def __init__(self, features_in, width, stride, of_input=False):
    super().__init__()
    self.of_input = of_input
    self.bn1, self.conv1 = nn.BatchNorm2d(features_in), conv(features_in, width, 3, stride)
    self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width, 3)
    if stride != 1 or features_in != width:
      self.shortcut = nn.Sequential(conv(features_in, width, 1, stride))

  def forward(self, x):
    out = functional.relu(self.bn1(x))
    shortcut = x
    if hasattr(self, 'shortcut'):
      shortcut = self.shortcut(x if self.of_input else out)
    return self.conv2(functional.relu(self.bn2(self.conv1(out)))) + shortcut


class PreActResNet(nn.Module):

  def __init__(self, num_classes, final_norm, of_input=False):
    super().__init__()
    self.conv1 = conv(3, 64, 3)
    for number, (features_in, width) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)], 1):
      self.add_module(f'layer{number}', nn.Sequential(
        PreActBlock(features_in, width, 1 if number == 1 else 2, of_input),
        PreActBlock(width, width, 1, of_input)))
    if final_norm:
      self.bn = nn.BatchNorm2d(512)
    self.linear = nn.Linear(512, num_classes)

  def forward(self, x):
    x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
    x = functional.relu(self.bn(x)) if hasattr(self, 'bn') else x
    return self.linear(x.mean((2, 3)))


class WideBlock(nn.Module):

  def __init__(self, features_in, width, stride):
    super().__init__()
    self.bn1, self.conv1 = nn.BatchNorm2d(features_in), conv(features_in, width, 3, stride)
    self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width, 3)
    self.convShortcut = conv(features_in, width, 1, stride) if features_in != width else None

  def forward(self, x):
    out = functional.relu(self.bn1(x))
    shortcut = self.convShortcut(out) if self.convShortcut else x
    return self.conv2(functional.relu(self.bn2(self.conv1(out)))) + shortcut


class WideGroup(nn.Module):

  def __init__(self, blocks, features_in, width, stride):
    super().__init__()
    self.layer = nn.Sequential(*(
      WideBlock(width if number else features_in, width, 1 if number else stride)
      for number in range(blocks)))

  def forward(self, x):
    return self.layer(x)


class WideResNet(nn.Module):

  def __init__(self, blocks, width, num_classes):
    super().__init__()
    self.conv1 = conv(3, 16, 3)
    self.block1 = WideGroup(blocks, 16, 16 * width, 1)
    self.sub_block1 = WideGroup(blocks, 16, 16 * width, 1)  # TRADES has it and never applies it
    self.block2 = WideGroup(blocks, 16 * width, 32 * width, 2)
    self.block3 = WideGroup(blocks, 32 * width, 64 * width, 2)
    self.bn1 = nn.BatchNorm2d(64 * width)
    self.fc = nn.Linear(64 * width, num_classes)

  def forward(self, x):
    x = self.block3(self.block2(self.block1(self.conv1(x))))
    return self.fc(functional.relu(self.bn1(x)).mean((2, 3)))


class DeepMindBlock(nn.Module):

  def __init__(self, features_in, width, stride):
    super().__init__()
    self.batchnorm_0 = nn.BatchNorm2d(features_in)
    self.conv_0 = nn.Conv2d(features_in, width, 3, stride, bias=False)
    self.batchnorm_1, self.conv_1 = nn.BatchNorm2d(width), conv(width, width, 3)
    self.shortcut = conv(features_in, width, 1, stride) if features_in != width else None
    self.padding = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)

  def forward(self, x):
    out = functional.silu(self.batchnorm_0(x))
    shortcut = self.shortcut(out) if self.shortcut else x
    out = self.conv_0(functional.pad(out, self.padding))
    return self.conv_1(functional.silu(self.batchnorm_1(out))) + shortcut


class DeepMindGroup(nn.Module):

  def __init__(self, blocks, features_in, width, stride):
    super().__init__()
    self.block = nn.Sequential(*(
      DeepMindBlock(width if number else features_in, width, 1 if number else stride)
      for number in range(blocks)))

  def forward(self, x):
    return self.block(x)


class DeepMindWideResNet(nn.Module):

  def __init__(self, blocks, width, num_classes):
    super().__init__()
    self.init_conv = conv(3, 16, 3)
    self.layer = nn.Sequential(DeepMindGroup(blocks, 16, 16 * width, 1),
                               DeepMindGroup(blocks, 16 * width, 32 * width, 2),
                               DeepMindGroup(blocks, 32 * width, 64 * width, 2))
    self.batchnorm = nn.BatchNorm2d(64 * width)
    self.logits = nn.Linear(64 * width, num_classes)

  def forward(self, x):
    x = functional.silu(self.batchnorm(self.layer(self.init_conv(x))))
    return self.logits(x.mean((2, 3)))


class DeepMindPreActBlock(nn.Module):

  def __init__(self, features_in, width, stride):
    super().__init__()
    self.batchnorm_0 = nn.BatchNorm2d(features_in)
    self.conv_2d_1 = nn.Conv2d(features_in, width, 3, stride, bias=False)
    self.batchnorm_1, self.conv_2d_2 = nn.BatchNorm2d(width), conv(width, width, 3)
    if stride != 1 or features_in != width:
      self.shortcut = nn.Conv2d(features_in, width, 3, stride, bias=False)
    self.padding = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)

  def forward(self, x):
    out = functional.pad(functional.silu(self.batchnorm_0(x)), self.padding)
    out = self.conv_2d_2(functional.silu(self.batchnorm_1(self.conv_2d_1(out))))
    if hasattr(self, 'shortcut'):
      x = self.shortcut(functional.pad(x, self.padding))
    return out + x


class DeepMindPreActResNet(nn.Module):

  def __init__(self, num_classes):
    super().__init__()
    self.conv_2d = conv(3, 64, 3)
    for number, (features_in, width) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)]):
      self.add_module(f'layer_{number}', nn.Sequential(
        DeepMindPreActBlock(features_in, width, 2 if number else 1),
        DeepMindPreActBlock(width, width, 1)))
    self.batchnorm = nn.BatchNorm2d(512)
    self.logits = nn.Linear(512, num_classes)

  def forward(self, x):
    x = self.layer_3(self.layer_2(self.layer_1(self.layer_0(self.conv_2d(x)))))
    return self.logits(functional.silu(self.batchnorm(x)).mean((2, 3)))


class Normalise(nn.Module):
  """The first layer of the smoothing code bases, here with its constants in the state_dict."""

  def __init__(self, means, sds):
    super().__init__()
    self.register_buffer('means', torch.tensor(means))
    self.register_buffer('sds', torch.tensor(sds))

  def forward(self, x):
    return (x - self.means[:, None, None]) / self.sds[:, None, None]


# EfficientNet-Lite0 as in EfficientNet-Lite-PyTorch, with TensorFlow's padding.


class SameConv(nn.Conv2d):

  def forward(self, x):
    pads = []
    for side, size, stride in zip(x.shape[2:], self.kernel_size, self.stride):
      pad = max((-(-side // stride) - 1) * stride + size - side, 0)
      pads = [pad // 2, pad - pad // 2, *pads]
    return self._conv_forward(functional.pad(x, pads), self.weight, None)


def same_conv(features_in, features, size, stride=1, groups=1):
  return SameConv(features_in, features, size, stride, groups=groups, bias=False)


def norm(features):
  return nn.BatchNorm2d(features, eps=1e-3)


class InvertedResidual(nn.Module):

  def __init__(self, features_in, features, size, stride, expansion):
    super().__init__()
    inner = features_in * expansion
    if expansion > 1:
      self._expand_conv, self._bn0 = same_conv(features_in, inner, 1), norm(inner)
    self._depthwise_conv = same_conv(inner, inner, size, stride, groups=inner)
    self._bn1 = norm(inner)
    self._project_conv, self._bn2 = same_conv(inner, features, 1), norm(features)
    self.has_shortcut = stride == 1 and features_in == features

  def forward(self, x):
    out = functional.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, '_bn0') else x
    out = functional.relu6(self._bn1(self._depthwise_conv(out)))
    out = self._bn2(self._project_conv(out))
    return x + out if self.has_shortcut else out


class EfficientNetLite0(nn.Module):

  def __init__(self, num_classes):
    super().__init__()
    self._conv_stem, self._bn0 = same_conv(3, 32, 3, 2), norm(32)
    self._blocks, features_in = nn.ModuleList(), 32
    for count, size, stride, expansion, features in (
        (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)):
      for number in range(count):
        self._blocks.append(InvertedResidual(
          features_in, features, size, 1 if number else stride, expansion))
        features_in = features
    self._conv_head, self._bn1 = same_conv(320, 1280, 1), norm(1280)
    self._fc = nn.Linear(1280, num_classes)

  def forward(self, x):
    x = functional.relu6(self._bn0(self._conv_stem(x)))
    for block in self._blocks:
      x = block(x)
    return self._fc(functional.relu6(self._bn1(self._conv_head(x))).mean((2, 3)))


def fill(network):
  """Gives a network the weights of `seeded`."""
  for name, tensor in network.state_dict().items():
    if not name.endswith(('means', 'sds')):
      tensor.copy_(torch.from_numpy(seeded.weight(name, tuple(tensor.shape))))
  return network.eval()


def logits(network, side):
  images = torch.from_numpy(seeded.images((2, side, side, 3))).permute(0, 3, 1, 2)
  with torch.no_grad():
    return network(images).tolist()


def write_logits():
  """Names and shapes of the state_dicts, and logits, one network a line."""
  networks = {
    'resnet20': (ResNet(BasicBlock, (3, 3, 3), 16, 10), 32),
    'resnet56': (ResNet(BasicBlock, (9, 9, 9), 16, 10), 32),
    'resnet110': (ResNet(BasicBlock, (18, 18, 18), 16, 10), 32),
    'resnet50': (ResNet(Bottleneck, (3, 4, 6, 3), 64, 1000, large_images=True), 64),
    'resnet18': (ResNet(BasicBlock, (2, 2, 2, 2), 64, 1000, large_images=True), 64),
    'resnet18 of pytorch-cifar': (
      ResNet(BasicBlock, (2, 2, 2, 2), 64, 10, names=('shortcut', 'linear')), 16),
    'resnet50 of pytorch-cifar': (
      ResNet(Bottleneck, (3, 4, 6, 3), 64, 10, names=('shortcut', 'linear')), 16),
    'preact_resnet18': (PreActResNet(10, final_norm=True), 16),
    'preact_resnet18 without final norm': (PreActResNet(10, final_norm=False), 16),
    'preact_resnet18 of wong': (PreActResNet(10, final_norm=False, of_input=True), 16),
    'preact_resnet18 of deepmind': (DeepMindPreActResNet(10), 16),
    'wide_resnet': (WideResNet(2, 2, 10), 16),
    'wide_resnet of deepmind': (DeepMindWideResNet(2, 2, 10), 16),
    'efficientnet_lite0': (EfficientNetLite0(10), 37),
  }
  lines = []
  for name, (network, side) in networks.items():
    network = fill(network.double())
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    images = torch.from_numpy(seeded.images((2, side, side, 3))).permute(0, 3, 1, 2)
    with torch.no_grad():
      values = network(images.double())
      float32 = network.float()(images)
    print(f'{name}: logits of size {values.abs().mean():.3g}, float32 differs by '
          f'{(values - float32).abs().max():.2g}')
    values = [[round(value, 7) for value in row] for row in values.tolist()]
    entry = {'side': side, 'logits': values, 'shapes': shapes}
    lines.append(f'{json.dumps(name)}: {json.dumps(entry, separators=(",", ":"))}')
  (FOLDER / 'torch_logits.json').write_text('{\n' + ',\n'.join(lines) + '\n}\n')


def write_checkpoints():
  """A network of the smoothing code bases as their training script saves it, in both formats."""
  network = nn.Sequential(Normalise([0.4, 0.5, 0.6], [0.25, 0.5, 0.2]),
                          nn.DataParallel(ResNet(BasicBlock, (1, 1, 1), 4, 5)))
  fill(network[1].module)
  optimizer = torch.optim.SGD(network[1].module.fc.parameters(), lr=0.1, momentum=0.9)
  network(torch.zeros(1, 3, 8, 8)).sum().backward()
  optimizer.step()  # so that it has momenta
  optimizer.zero_grad()
  fill(network[1].module)
  checkpoint = {'epoch': 3, 'arch': 'cifar_resnet8', 'state_dict': network.state_dict(),
                'optimizer': optimizer.state_dict()}
  torch.save(checkpoint, FOLDER / 'torch_zip.pth')
  torch.save(checkpoint, FOLDER / 'torch_legacy.pth', _use_new_zipfile_serialization=False)
  safetensors.torch.save_file(network.state_dict(), FOLDER / 'torch.safetensors')
  (FOLDER / 'torch_resnet8.json').write_text(json.dumps(logits(network, 8)) + '\n')


class Settings:
  """An object of the training script's own, as configs and loggers are."""

  def __init__(self):
    self.lr = 0.1


def write_objects():
  """A state_dict beside what scripts save with it: objects that only their code can make."""
  saved = {
    'state_dict': nn.Linear(2, 2).state_dict(), 'best': np.float64(0.5), 'history': np.arange(3.),
    'args': argparse.Namespace(lr=0.1, epochs={1, 2}), 'device': torch.device('cpu'),
    'folder': pathlib.PurePosixPath('a/b'), 'classes': {'cat', 'dog'}, 'settings': Settings(),
    'dtype': torch.float16, 'shape': torch.Size([2, 3]), 'counts': collections.Counter('aab'),
    'when': datetime.datetime(2026, 1, 1), 'complex': 1j, 'scores': collections.defaultdict(list)}
  for weight in saved['state_dict'].values():
    weight.copy_(torch.arange(weight.numel()).reshape(weight.shape))
  torch.save(saved, FOLDER / 'torch_objects_zip.pth')
  torch.save(saved, FOLDER / 'torch_objects_legacy.pth', _use_new_zipfile_serialization=False)


def write_tensors():
  """Tensors of all kinds: shared storages, strides, types. The test builds them in NumPy."""
  base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
  tensors = collections.OrderedDict(
    base=base, transposed=base.t(), window=base[1:3, 1::2], expanded=base[0].expand(3, 6),
    scalar=base[2, 3], empty=torch.zeros(0, 3), parameter=nn.Parameter(base[3]),
    float64=torch.tensor([0.1, -2.5], dtype=torch.float64),
    float16=torch.tensor([0.5, -2.5], dtype=torch.float16),
    bfloat16=torch.tensor([[0.5, -2.5]], dtype=torch.bfloat16),
    int64=torch.tensor(-2**40), int32=torch.tensor([-7], dtype=torch.int32),
    int16=torch.tensor([-7], dtype=torch.int16), int8=torch.tensor([-7], dtype=torch.int8),
    uint8=torch.tensor([200], dtype=torch.uint8), bool=torch.tensor([True, False]))
  torch.save(tensors, FOLDER / 'torch_tensors_zip.pth')
  torch.save(tensors, FOLDER / 'torch_tensors_legacy.pth', _use_new_zipfile_serialization=False)
  safetensors.torch.save_file({name: tensor.detach().clone().contiguous()
                               for name, tensor in tensors.items()},
                              FOLDER / 'torch_tensors.safetensors')


if __name__ == '__main__':
  write_logits()
  write_checkpoints()
  write_objects()
  write_tensors()
