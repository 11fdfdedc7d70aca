"""The networks of robust_jax.models in PyTorch, input normalisation included."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.work import MODELS


class Normalise(nn.Module):
  """(images - mean) / std, one number a channel."""

  def __init__(self, mean, std):
    super().__init__()
    for name, values in (('mean', mean), ('std', std)):
      self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1), persistent=False)

  def forward(self, images):
    return (images - self.mean) / self.std


def _conv(features_in, features, kernel, stride=1):
  return nn.Conv2d(features_in, features, kernel, stride, kernel // 2, bias=False)


class LeNet(nn.Module):
  """conv5x5-20, pool, conv5x5-50, pool, dense 500, dense 10; pool before ReLU, as in ours."""

  def __init__(self):
    super().__init__()
    self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
    self.dense, self.logits = nn.Linear(800, 500), nn.Linear(500, 10)

  def forward(self, x):
    x = functional.relu(functional.max_pool2d(self.conv1(x), 2))
    x = functional.relu(functional.max_pool2d(self.conv2(x), 2))
    return self.logits(functional.relu(self.dense(x.flatten(1))))


class Block(nn.Module):
  """relu(BN(convs) + shortcut): two 3x3 convolutions, or a bottleneck of 1x1, 3x3, 1x1."""

  def __init__(self, features_in, width, stride, bottleneck):
    super().__init__()
    features = 4 * width if bottleneck else width
    shapes = ([(features_in, width, 1, 1), (width, width, 3, stride), (width, features, 1, 1)]
              if bottleneck else [(features_in, width, 3, stride), (width, width, 3, 1)])
    self.depth = len(shapes)
    for number, (before, after, kernel, its_stride) in enumerate(shapes, 1):
      self.add_module(f'conv{number}', _conv(before, after, kernel, its_stride))
      self.add_module(f'bn{number}', nn.BatchNorm2d(after))
    self.downsample = nn.Identity()
    if stride != 1 or features_in != features:
      self.downsample = nn.Sequential(_conv(features_in, features, 1, stride),
                                      nn.BatchNorm2d(features))

  def forward(self, x):
    out = x
    for number in range(1, self.depth + 1):
      out = getattr(self, f'bn{number}')(getattr(self, f'conv{number}')(out))
      if number < self.depth:
        out = functional.relu(out, inplace=True)
    return functional.relu(out + self.downsample(x), inplace=True)


class ResNet(nn.Module):
  """ResNets with the names of torchvision's layers, which the CIFAR code bases use as well."""

  def __init__(self, num_blocks, width, num_classes, bottleneck=False):
    super().__init__()
    self.conv1 = _conv(3, width, 7, 2) if bottleneck else _conv(3, width, 3)
    self.bn1 = nn.BatchNorm2d(width)
    self.maxpool = nn.MaxPool2d(3, 2, 1) if bottleneck else nn.Identity()
    features, self.num_stages = width, len(num_blocks)
    for stage, blocks in enumerate(num_blocks):
      layers = []
      for number in range(blocks):
        stride = 2 if stage > 0 and number == 0 else 1
        layers.append(Block(features, width * 2**stage, stride, bottleneck))
        features = width * 2**stage * (4 if bottleneck else 1)
      self.add_module(f'layer{stage + 1}', nn.Sequential(*layers))
    self.fc = nn.Linear(features, num_classes)

  def forward(self, x):
    x = self.maxpool(functional.relu(self.bn1(self.conv1(x)), inplace=True))
    for stage in range(self.num_stages):
      x = getattr(self, f'layer{stage + 1}')(x)
    return self.fc(x.mean((2, 3)))


class WideBlock(nn.Module):
  """A pre-activation block whose shortcut, where the shape changes, starts after BN and ReLU."""

  def __init__(self, features_in, width, stride):
    super().__init__()
    self.bn1, self.conv1 = nn.BatchNorm2d(features_in), _conv(features_in, width, 3, stride)
    self.bn2, self.conv2 = nn.BatchNorm2d(width), _conv(width, width, 3)
    if stride != 1 or features_in != width:
      self.convShortcut = _conv(features_in, width, 1, stride)

  def forward(self, x):
    out = functional.relu(self.bn1(x), inplace=True)
    shortcut = self.convShortcut(out) if hasattr(self, 'convShortcut') else x
    out = functional.relu(self.bn2(self.conv1(out)), inplace=True)
    return self.conv2(out) + shortcut


class Stage(nn.Module):
  """Blocks under the name that TRADES and its successors give them."""

  def __init__(self, blocks):
    super().__init__()
    self.layer = nn.Sequential(*blocks)

  def forward(self, x):
    return self.layer(x)


class WideResNet(nn.Module):
  """WRN-(6 num_blocks + 4)-width with the layer names of TRADES and its successors."""

  def __init__(self, num_blocks, width, num_classes):
    super().__init__()
    self.conv1, features = _conv(3, 16, 3), 16
    for stage in range(3):
      blocks = []
      for number in range(num_blocks):
        stride = 2 if stage > 0 and number == 0 else 1
        blocks.append(WideBlock(features, 16 * width * 2**stage, stride))
        features = 16 * width * 2**stage
      self.add_module(f'block{stage + 1}', Stage(blocks))
    self.bn1, self.fc = nn.BatchNorm2d(features), nn.Linear(features, num_classes)

  def forward(self, x):
    x = self.block3(self.block2(self.block1(self.conv1(x))))
    return self.fc(functional.relu(self.bn1(x), inplace=True).mean((2, 3)))


_MAKE = {
    'lenet': LeNet,
    'resnet20': lambda: ResNet((3,) * 3, 16, 10),
    'resnet110': lambda: ResNet((18,) * 3, 16, 10),
    'wrn_28_10': lambda: WideResNet(4, 10, 10),
    'resnet50': lambda: ResNet((3, 4, 6, 3), 64, 1000, bottleneck=True),
}


def create(name):
  """torch.nn.Sequential(normalisation, network): images [batch, C, H, W] in [0, 1] -> logits."""
  model = MODELS[name]
  return nn.Sequential(Normalise(model.mean, model.std), _MAKE[name]())


def typical_weights(name):
  """A state_dict like that of a trained network, the same at every call.

  Freshly initialised BatchNorm statistics would let activations grow from block to block; these
  are those of random images, and scales and biases are not all 1 and 0.
  """
  torch.manual_seed(0)
  model, shape = create(name), MODELS[name]
  norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
  for norm in norms:
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, 0, 0.1)
    norm.momentum = 1.
  images = np.random.default_rng(0).random((16, shape.channels, shape.side, shape.side), np.float32)
  with torch.no_grad():
    model.train()(torch.from_numpy(images))
  return model.state_dict()
