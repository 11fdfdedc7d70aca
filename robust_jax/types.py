"""The seams of robust_jax on one page: what the parts hand to each other.

An experiment composes a network, a method (attack + loss + noise) and a certification. Each is a
pure function of the types below, so any of them can be replaced without touching the others.

Shapes. Images are [batch, height, width, channel] float32 in [0, 1]; every epsilon, sigma, step
size and radius is in those pixel units, because normalisation is a part of the network.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax

Array = jax.Array
LogitsFn = Callable[[Array], Array]
"""Images [batch, ...] -> logits [batch, classes]."""
Objective = Callable[[Array], Array]
"""Images [batch, ...] -> [batch], to be ascended by an attack."""


class Batch(NamedTuple):
  """Examples of one split.

  Attributes:
    images: [batch, height, width, channel] float32 in [0, 1].
    labels: [batch] int32.
    index: [batch] int32, the example's position in its split, extra examples after the others; the
      number of all of them on padding.
    mask: [batch] float32, the weight of the example's loss: 1, another one for extra examples (see
      `data.extra`), 0 for padding, which counts in no sum.
    aux: {name: [batch, ...]}, what else a method asks for about each example (`methods.Needs`):
      'tangents' [batch, d, k] float32, k orthonormal directions in the d flattened entries of the
      image; 'targets' [batch, classes] float32, another classifier's probabilities; in a train
      step, the values of the method's per-example memory.
  """

  images: Array
  labels: Array
  index: Array
  mask: Array
  aux: dict[str, Array] = {}


class AttackResult(NamedTuple):
  """What an attack found, one entry per example.

  Attributes:
    images: [batch, ...], in the perturbation set.
    success: [batch] bool: misclassified (targeted: classified as the target).
    objective: [batch], the ascended objective at `images`.
    undefined: [batch] bool, or False for none: some gradient on the way was not finite, so that
      the attack stood still there and may have missed what it would have found.
  """

  images: Array
  success: Array
  objective: Array
  undefined: Array | bool = False


Attack = Callable[..., AttackResult]
"""(key, logits_fn, images, labels, *, epsilon, noise=None) -> AttackResult.

`key` is one key or [batch] keys; `epsilon` a scalar or [batch], in pixel units.
`noise` [num_noise, batch, ...] makes it an attack on the smoothed classifier."""


class Network(NamedTuple):
  """A classifier as two pure functions, input normalisation included.

  Attributes:
    eval_logits: variables -> LogitsFn (a pytree: new variables compile nothing). Stored batch
      statistics, no dropout.
    train_logits: (params, batch_stats, images, key) -> (logits, batch_stats). Batch statistics
      of `images`, synchronised over devices; `key` [batch] keys for dropout.
    attacked_params: None, or the parameters that methods attack in place of those they train; see
      `train_step`, weight_ascent.
    attacked: None; a list, to which `passes.attacked_images` adds what it finds; or an iterator of
      what it found before.
  """

  eval_logits: Callable[[Any], LogitsFn]
  train_logits: Callable[..., tuple[Array, Any]]
  attacked_params: Any = None
  attacked: Any = None


class Progress(NamedTuple):
  """How far training is; traced, so that warm-ups compile nothing.

  Attributes:
    step: int32, steps done.
    epoch: int32, whole epochs done.
    passed: float32, epochs done with the part of this one.
  """

  step: Array
  epoch: Array
  passed: Array


class MethodOutput(NamedTuple):
  """What a training method makes of one batch.

  Attributes:
    loss: [batch], to be differentiated with respect to the parameters.
    batch_stats: the updated BatchNorm statistics.
    metrics: {name: [batch]}, besides the loss.
    memory: {name: [batch]}, the new values of the method's per-example memory.
  """

  loss: Array
  batch_stats: Any
  metrics: dict[str, Array]
  memory: dict[str, Array] = {}


Method = Callable[..., MethodOutput]
"""(key, network, params, batch_stats, batch, progress, *, **hyper) -> MethodOutput.

`key` is one key or [batch] keys. A method that attacks takes its inner maximisation as the keyword
`attack` (an `Attack` but for epsilon and noise). Nothing is compiled in it: outside of a train
step, jit the call."""


class TrainState(NamedTuple):
  """Everything that training changes; replicated over devices.

  Attributes:
    step: int32 scalar.
    params: parameters.
    batch_stats: BatchNorm statistics ({} without BatchNorm).
    opt_state: the optax state.
    ema: None, or the moving average {'params', 'batch_stats'}.
    memory: {name: [num_train]}, per-example memory of the method.
    loss_mean: None, or the state of the mean loss of the last steps, for `max_loss_jump`.
  """

  step: Array
  params: Any
  batch_stats: Any
  opt_state: Any
  ema: Any
  memory: dict[str, Array]
  loss_mean: Any = None

  @property
  def variables(self):
    """What the network is evaluated with: the average where there is one."""
    if self.ema is not None:
      return self.ema
    return {'params': self.params, 'batch_stats': self.batch_stats}


class Certificate(NamedTuple):
  """Certificates of a batch (NumPy, float64 statistics from integer counts).

  Attributes:
    prediction: [batch] int, -1 where the classifier abstains.
    radius: [batch] float64, the certified l2 radius in pixel units; 0 where it abstains.
    p_lower: [batch] float64, lower confidence bound of the probability of the selected class.
    counts0: [batch, classes] int, votes of the n0 draws that select the class.
    counts: [batch, classes] int, votes of the n draws that bound its probability.
  """

  prediction: Any
  radius: Any
  p_lower: Any
  counts0: Any
  counts: Any


@dataclasses.dataclass(frozen=True)
class Interval:
  """The finite range of a hyper-parameter, which signatures carry and configs are checked by."""

  low: float = -math.inf
  high: float = math.inf
  open_low: bool = False
  open_high: bool = False

  def __contains__(self, value):
    above = value > self.low if self.open_low else value >= self.low
    below = value < self.high if self.open_high else value <= self.high
    return above and below and math.isfinite(value)

  def __str__(self):
    left = '(' if self.open_low or self.low == -math.inf else '['
    right = ')' if self.open_high or self.high == math.inf else ']'
    return f'{left}{self.low:g}, {self.high:g}{right}'


Positive = Annotated[float, Interval(0, open_low=True)]
NonNegative = Annotated[float, Interval(0)]
Probability = Annotated[float, Interval(0, 1, open_low=True, open_high=True)]
Fraction = Annotated[float, Interval(0, 1)]
Count = Annotated[int, Interval(1)]
Index = Annotated[int, Interval(0)]
