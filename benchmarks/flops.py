"""How much arithmetic a task is, counted by hand so that it is the same for every contestant.

Counted are multiplications and additions of convolutions and dense layers, two for each pair.
Not counted: BatchNorm, ReLU, pools, losses, noise, projections, the optimiser. What a program
computes besides (padding, a forward pass twice) is not counted either: the share of the machine's
peak is that of useful arithmetic.

For a forward pass of F, of which the first layer is F1:

- the gradient with respect to the images costs another F (each layer's input gradient);
- that with respect to the parameters F for the weight gradients and F - F1 for the input
  gradients, because nobody asks for that of the images.
"""


def conv(side, kernel, features_in, features):
  """FLOPs of a square convolution whose result is `side` pixels wide."""
  return 2 * side**2 * kernel**2 * features_in * features


def dense(features_in, features):
  """FLOPs of a dense layer for one row."""
  return 2 * features_in * features


def lenet():
  """FLOPs of each layer for one image."""
  return [conv(24, 5, 1, 20), conv(8, 5, 20, 50), dense(800, 500), dense(500, 10)]


def cifar_resnet(blocks, width=1):
  """FLOPs of each layer of a (Wide) ResNet of 3 x `blocks` basic blocks on 32x32x3."""
  layers, features_in = [conv(32, 3, 3, 16)], 16
  for stage in range(3):
    side, features = 32 // 2**stage, 16 * width * 2**stage
    for _ in range(blocks):
      layers += [conv(side, 3, features_in, features), conv(side, 3, features, features)]
      if features != features_in:
        layers.append(conv(side, 1, features_in, features))
      features_in = features
  return [*layers, dense(features_in, 10)]


def resnet50():
  """FLOPs of each layer on 224x224x3, with 1000 classes."""
  layers, features_in, side_in = [conv(112, 7, 3, 64)], 64, 56
  for stage, blocks in enumerate((3, 4, 6, 3)):
    side, width = 56 // 2**stage, 64 * 2**stage
    for _ in range(blocks):
      layers += [conv(side_in, 1, features_in, width), conv(side, 3, width, width),
                 conv(side, 1, width, 4 * width)]
      if features_in != 4 * width:
        layers.append(conv(side, 1, features_in, 4 * width))
      features_in, side_in = 4 * width, side
  return [*layers, dense(2048, 1000)]


LAYERS = {
    'lenet': lenet(),
    'resnet20': cifar_resnet(3),
    'resnet110': cifar_resnet(18),
    'wrn_28_10': cifar_resnet(4, width=10),
    'resnet50': resnet50(),
}


def per_item(work):
  """FLOPs of a `work.Work` for one image (of 'certify': for one draw)."""
  layers = LAYERS[work.model]
  forward, training = sum(layers), 3 * sum(layers) - layers[0]
  return {
      'pgd10': 2 * forward * work.num_steps,
      'train': training,
      'smoothadv': work.num_noise * (2 * forward * work.num_steps + training),
      'certify': forward,
  }[work.task]
