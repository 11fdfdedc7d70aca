"""The export stage: the network as ONNX, and questions on its robustness as VNN-LIB."""

import contextlib
import os
from pathlib import Path

import numpy as np

from robust_jax import backend, data
from robust_jax.errors import MismatchError, UserError
from robust_jax.stages import images, onnx_model, relogged, weights
from robust_jax.workdir import records

# Test images on which the model is compared with the network.
_NUM_COMPARED = 64
# Of the largest logit, or of 1.
_TOLERANCE = 1e-4


def check(run):
  """Raises UserError where a package is missing, or a radius."""
  for name in ('onnx', 'onnxruntime'):
    onnx_model.package(name)
  _radius(run)


def export(run, workdir):
  """Writes WORKDIR/export: model.onnx, vnnlib/*.vnnlib and instances.csv.

  The questions are those that the bound stage has left open, or else of the first
  config.export.num_images of the images of the attack stage; not of images that are misclassified
  without a perturbation.

  Raises:
    UserError: a package is missing, or bounds that are not in linf.
    MismatchError: the model's logits are not the network's.
  """
  folder = Path(workdir) / 'export'
  folder.mkdir(exist_ok=True)
  loaded = weights.load(run, workdir)
  logits_fn = loaded.logits_fn
  with _plain_layers():
    try:
      model = onnx_model.make(logits_fn, run.test_data.image_shape)
    except ValueError as error:
      raise UserError(f'--stages=export: {error}') from error
  chosen = images.chosen(run, run.evaluation)[:_NUM_COMPARED]
  apart = compare(model, logits_fn, np.asarray(data.take(run.test_data, chosen).images))
  records.write_bytes(folder / 'model.onnx', model.SerializeToString())
  wanted, written = write_questions(run, workdir, loaded)
  print(f'export: {folder}: model.onnx, its logits within {apart:.2g} of the network\'s on '
        f'{len(chosen)} images; {written} questions in instances.csv'
        + (f', none of {wanted - written} misclassified images' if written < wanted else ''),
        flush=True)


def write_questions(run, workdir, loaded):
  """Writes vnnlib/*.vnnlib and instances.csv; (how many were wanted, how many there are)."""
  questions, folder = _open(workdir, loaded.origin), Path(workdir) / 'export'
  (folder / 'vnnlib').mkdir(parents=True, exist_ok=True)
  if questions is None:
    questions = [(idx, _radius(run)) for idx in images.chosen(run, run.evaluation)[
        :run.export.num_images]]
  for old in (folder / 'vnnlib').glob('*.vnnlib'):
    old.unlink()
  lines = []
  for idx, epsilon in questions:
    batch = data.take(run.test_data, [idx])
    image, label = np.asarray(batch.images[0]), int(batch.labels[0])
    if int(np.argmax(loaded.logits_fn(batch.images)[0])) != label:
      continue
    name = f'vnnlib/{idx}_{epsilon:.9g}.vnnlib'
    text = vnnlib(image, label, epsilon, run.test_data.num_classes,
                  title=f'{run.data.name} {run.test_data.split}, image {idx}')
    records.write_bytes(folder / name, text.encode())
    lines.append(f'model.onnx,{name},{run.export.timeout:g}\n')
  records.write_bytes(folder / 'instances.csv', ''.join(lines).encode())
  return len(questions), len(lines)


def compare(model, logits_fn, batch):
  """The largest difference of the logits, of a batch and of its first image alone.

  Args:
    model: of `onnx_model.make`.
    logits_fn: images -> logits.
    batch: [batch, ...] float32.

  Raises:
    MismatchError: it is above 10^-4 of the largest logit, or of 1.
  """
  session = onnx_model.package('onnxruntime').InferenceSession(
      model.SerializeToString(), providers=['CPUExecutionProvider'])
  expected = np.asarray(logits_fn(batch))
  found = np.concatenate([session.run(None, {onnx_model.INPUT: part})[0]
                          for part in (batch, batch[:1])])
  apart = float(np.abs(found - np.concatenate([expected, expected[:1]])).max())
  if not apart <= _TOLERANCE * max(1, np.abs(expected).max()):
    raise MismatchError(f'--stages=export: logits of model.onnx must be within {_TOLERANCE:g} of '
                        f'the network\'s, got a difference of {apart:.3g}')
  return apart


def vnnlib(image, label, epsilon, num_classes, *, title=''):
  """The question whether an image within epsilon in linf is of another class, as VNN-LIB.

  X_i are the pixels in row-major order of [height, width, channel], in [0, 1]; Y_j the logits.
  'sat' is an adversarial example, Y_j >= Y_y of some other class j.

  Args:
    image: [...] in [0, 1].
    label: y.
    epsilon: in pixel units.
    num_classes: of the logits.
    title: of the first line, a comment.

  Reference:
    Brix et al., First Three Years of the International Verification of Neural Networks Competition
    (VNN-COMP), 2023; www.vnnlib.org.
  """
  pixels = np.asarray(image, float).reshape(-1)
  ends = np.clip(pixels - epsilon, 0, 1), np.clip(pixels + epsilon, 0, 1)
  number = lambda value: np.format_float_positional(value, trim='0')
  lines = [f'; {title}: class {label}, linf {epsilon:.9g}', '']
  lines += [f'(declare-const X_{i} Real)' for i in range(len(pixels))]
  lines += [f'(declare-const Y_{j} Real)' for j in range(num_classes)]
  for i, (low, high) in enumerate(zip(*ends)):
    lines += [f'(assert (>= X_{i} {number(low)}))', f'(assert (<= X_{i} {number(high)}))']
  lines += ['(assert (or', *(f'  (and (>= Y_{j} Y_{label}))' for j in range(num_classes)
                             if j != label), '))', '']
  return '\n'.join(lines)


def _radius(run):
  """config.export.epsilon, or the middle one of config.evaluation.epsilons."""
  if run.export.epsilon is not None:
    return run.export.epsilon
  norm = run.config['attack'].get('norm')
  if norm != 'linf':
    raise UserError(f'config.export.epsilon must be a radius in linf, as config.attack.norm is '
                    f'{norm!r}, got None')
  return run.evaluation.epsilons[len(run.evaluation.epsilons) // 2]


def _open(workdir, origin):
  """[(idx, epsilon)] that bound.jsonl has left open; None where there is no such log."""
  path = Path(workdir) / 'bound.jsonl'
  if not path.exists():
    return None
  entries = records.read(path)
  header = entries[0]['header'] if entries else {'norm': 'linf', **origin}
  relogged.check_origin(path, header, origin)
  norm = header['norm']
  if norm != 'linf':
    raise UserError(f'{path}: bounds must be in linf for --stages=export, got {norm!r}')
  return [(int(entry['idx']), float(entry['epsilon'])) for entry in entries
          if entry.get('verdict') == 'unknown']


@contextlib.contextmanager
def _plain_layers():
  """Networks are traced in Flax's layers, without the custom calls of a CPU."""
  before = os.environ.get(backend.SWITCH)
  os.environ[backend.SWITCH] = 'plain'
  try:
    yield
  finally:
    if before is None:
      del os.environ[backend.SWITCH]
    else:
      os.environ[backend.SWITCH] = before
