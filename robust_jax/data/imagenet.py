"""The classes of ImageNet."""

import functools
from pathlib import Path


@functools.cache
def names() -> dict[str, str]:
  """{synset: a short name} of ImageNet's 1000 classes, {'n01440764': 'tench', ...}, in order."""
  lines = (Path(__file__).parent / 'imagenet_classes.txt').read_text(encoding='utf-8').splitlines()
  return dict(line.split(maxsplit=1) for line in lines)
