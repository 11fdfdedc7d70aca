"""Whether an image has another class in a ball, decided: attack, CROWN, and an integer program."""

import time
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_jax import inputs, schema, smoothing
from robust_jax.attacks import pgd, threat_models
from robust_jax.bounds import program, propagate
from robust_jax.bounds.crown import crown
from robust_jax.types import Array, Count, Index, Positive

Verdict = Literal['verified', 'falsified', 'unknown']


class Exact(NamedTuple):
  """What `exact` has found of an image.

  Attributes:
    verdict: 'verified': no image in the ball has another class, or, of a target, that class;
      'falsified': `example` has; 'unknown'.
    example: [...] float32 in the ball, whose logits have a negative margin; None unless falsified.
    margin: 'falsified': that of the example; otherwise a lower bound of the least margin in the
      ball, which need not be close where it is positive, -inf if there is none.
    seconds: that it took.
  """

  verdict: Verdict
  example: np.ndarray | None
  margin: float
  seconds: float


@schema.checked
def exact(logits_fn, image: Array, label: Index, epsilon, *, norm: program.Norm = 'linf',
          target=None, num_steps: Index = 40, time_limit: Positive = 60.,
          max_binaries: Index = 1000, relaxed: bool = False, chunk: Count = 256):
  """Whether any image within epsilon has another class, by attack, CROWN, and HiGHS.

  The least z_y - z_j of each class j whose bound of `crown` is not positive, over the images, the
  values in the network, and a binary for each piece but one of a ReLU, leaky ReLU, abs, clip, max
  or max-pool that can be on several of its pieces: f = max_p a_p x + b_p is f >= a_p x + b_p and
  f <= a_p x + b_p + M_p (1 - d_p), sum_p d_p = 1, M_p from the bounds of CROWN. With binaries
  between 0 and 1, `relaxed`, that is the triangle of a ReLU, and a bound below the least margin.

  Every row is widened by the rounding errors of float32, as bounds of `crown` are, so that
  'verified' is of the network as it computes. The solver computes in float64, in units in which no
  variable has a small range and no row small entries: its dual bound is lowered by 1e-6, its
  tolerance of rows and integers (primal_feasibility_tolerance, mip_feasibility_tolerance), times 1
  and the summed coefficients of the margin, and by 1e-7, that of reduced costs
  (dual_feasibility_tolerance), times the summed ranges of all variables. With binaries, only
  margins of 0.01 and less are looked for, and that there are none is HiGHS's word. It is no formal
  proof: its presolve and cuts are trusted.

  Args:
    logits_fn: images [batch, ...] -> logits [batch, classes], as of `crown`; a
      `jax.tree_util.Partial` is compiled once for all images.
    image: [...] in [0, 1], float.
    label: its class.
    epsilon: radius in pixel units.
    norm: of the ball, which is cut to [0, 1].
    target: the only class j to look at; None: all but the label.
    num_steps: of PGD against each class, before the solver.
    time_limit: seconds of the program and its solver, all classes together.
    max_binaries: of more, the program is only solved relaxed.
    relaxed: never solve it with binaries.
    chunk: as of `crown`.

  Returns:
    Exact. The example is in the ball in float64, and misclassified by logits_fn in float32.

  Raises:
    ValueError: an argument out of range; or logits_fn is not piecewise linear, or cannot be bounded
      (see `crown`).

  Reference:
    Tjeng, Xiao and Tedrake, Evaluating Robustness of Neural Networks with Mixed Integer
    Programming, 2019.
  """
  begun = time.monotonic()
  image, label, epsilon, target = _checked(logits_fn, image, label, epsilon, norm, target)
  classes = inputs.num_classes(logits_fn, image[None])
  asked = [j for j in range(classes) if j != label] if target is None else [target]
  rows = np.eye(classes)[label] - np.eye(classes)
  graph = program.piecewise_linear(logits_fn, image.shape)
  answer = lambda verdict, margin, example=None: Exact(
      verdict, example, float(margin), time.monotonic() - begun)

  def crossing(points):
    """The margin and the image of the first of points, brought into the ball, that crosses."""
    for point in points:
      point = _into_ball(point, image, epsilon, norm)
      logits = propagate.compiled(_call, logits_fn, point[None])
      least = float((np.asarray(logits[0])[label] - np.asarray(logits[0])[asked]).min())
      if least < 0:
        return least, point
    return None

  points = propagate.compiled(_attack, logits_fn, image[None], np.float32(rows),
                              np.float32(epsilon), norm=norm, num_steps=int(num_steps))
  if found := crossing(np.asarray(points)[asked]):
    return answer('falsified', *found)
  lower = np.array(crown(logits_fn, image[None], epsilon, norm=norm, chunk=chunk,
                         labels=np.array([label]))[0], float)
  left = sorted((j for j in asked if not lower[j] > 0), key=lambda j: lower[j])
  if not left:
    return answer('verified', lower[asked].min())
  end = time.monotonic() + time_limit
  problem = program.build(logits_fn, image, epsilon, norm=norm, chunk=chunk, graph=graph)
  if problem is None:
    return answer('unknown', lower[asked].min())
  # From the quickest program to the one that decides the most.
  ways = [dict(relaxed=True)]
  if not relaxed and problem.binary.sum() <= max_binaries and program.holds(
      problem, image, time_limit=end - time.monotonic()):
    ways += [dict(sign_only=True), dict()]
  for j in left:
    for way in ways:
      seconds = end - time.monotonic()
      if lower[j] > 0 or seconds <= 0:
        break
      least, point = program.minimum(problem, rows[j], time_limit=seconds, **way)
      lower[j] = max(lower[j], least)
      if point is not None and (found := crossing([point.reshape(image.shape)])):
        return answer('falsified', *found)
  return answer('verified' if (lower[asked] > 0).all() else 'unknown', lower[asked].min())


def _checked(logits_fn, image, label, epsilon, norm, target):
  image = np.asarray(image)
  inputs.images(image[None], name='image')
  classes = inputs.num_classes(logits_fn, jax.ShapeDtypeStruct((1, *image.shape), np.float32))
  for name, value in (('label', label), ('target', target)):
    if value is not None:
      inputs.labels(np.asarray(value)[None], 1, num_classes=classes, name=name)
  if np.ndim(epsilon):
    raise ValueError(f'epsilon must be a number, got shape {np.shape(epsilon)}')
  if target is not None and target == label:
    raise ValueError(f'target must not be the label, got {target} for both')
  images, labels, _, targets = inputs.attacked(
      smoothing.victim(logits_fn), image[None], np.array([label]), epsilon=epsilon,
      targets=None if target is None else np.array([target]), norm=norm)
  return (np.asarray(images[0]), int(labels[0]), float(epsilon),
          None if targets is None else int(targets[0]))


def _call(logits_fn, images):
  return logits_fn(images)


def _attack(logits_fn, images, rows, epsilon, *, norm, num_steps):
  """[rows, ...], the images that PGD finds for the least <row, z>."""
  start = jnp.broadcast_to(images, (len(rows), *images.shape[1:]))
  objective = lambda x: -jnp.sum(rows * logits_fn(x), axis=1)
  return pgd(jax.random.key(0), objective, start, threat_models.make(norm, epsilon),
             step_size=epsilon / 8, num_steps=num_steps).images


def _into_ball(point, image, epsilon, norm):
  """The image near point that is in ball and box, in float64."""
  image = image.astype(float)
  moved = np.clip(point.astype(float), 0, 1) - image
  if norm == 'linf':
    moved = np.clip(moved, -epsilon, epsilon)
  size = lambda moved: np.abs(moved).max() if norm == 'linf' else np.abs(moved).sum()
  moved = moved * min(1, epsilon / max(size(moved), 1e-30))
  for share in (1, 1 - 1e-6, 1 - 1e-4, 1 - 1e-2):  # float32 may round it outward.
    found = (image + share * moved).astype(np.float32)
    if size(found.astype(float) - image) <= epsilon:
      return found
  return image.astype(np.float32)
