"""N-FGSM: adversarial training with a single step, from noise that is larger than the step."""

from typing import Literal

from robust_jax import attacks, keys, losses, smoothing
from robust_jax.attacks import objectives, threat_models
from robust_jax.training.methods.adversarial import adversarial
from robust_jax.types import Fraction, Index, NonNegative, Positive


def n_fgsm(key, network, params, batch_stats, batch, progress, *, epsilon: NonNegative,
           norm: Literal['linf', 'l2'] = 'linf', noise_ratio: NonNegative = 2.,
           step_ratio: Positive = 1., epsilon_warmup_epochs: Index = 0,
           clean_share: Fraction = 0., label_smoothing: Fraction = 0.):
  """Adversarial training at x' = clip(u + a epsilon sign(grad L(u, y))), u = clip(x + n).

  n ~ U(-k epsilon, k epsilon), clip is to [0, 1]. x' is held by no ball around x: it may be
  (k + a) epsilon away. The gradient is taken in evaluation mode, in the authors' code in training
  mode.

  Args:
    epsilon: the radius that is defended against, in pixel units.
    norm: 'linf', as published; of 'l2', n is uniform in the ball and the step along the gradient.
    noise_ratio: k; 0 is FGSM with a step a epsilon.
    step_ratio: a.
    epsilon_warmup_epochs, clean_share, label_smoothing: see `adversarial`.

  The other arguments and the result as `adversarial`.

  Reference:
    de Jorge et al., Make some noise: reliable and efficient single-step adversarial training, 2022.
  """

  def attack(key, logits_fn, images, labels, *, epsilon):
    noise_keys, step_keys = keys.uses(key, len(images), 2)
    victim = smoothing.victim(logits_fn)
    start = threat_models.make(norm, noise_ratio * epsilon).random(noise_keys, images)
    # Noise and step lead nowhere outside of this ball.
    reach = threat_models.make(norm, (noise_ratio + step_ratio) * epsilon)
    return attacks.pgd(
        step_keys, victim.objective(objectives.cross_entropy, labels), images, reach,
        step_size=step_ratio * epsilon, num_steps=1, start=start,
        success_fn=lambda x: losses.predicted(logits_fn(x)) != labels)

  return adversarial(key, network, params, batch_stats, batch, progress, attack=attack,
                     epsilon=epsilon, epsilon_warmup_epochs=epsilon_warmup_epochs,
                     clean_share=clean_share, label_smoothing=label_smoothing)
