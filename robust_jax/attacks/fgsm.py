"""FGSM and its kin for other norms: one step to the end of the linearised problem."""

from robust_jax import schema
from robust_jax.attacks import threat_models
from robust_jax.attacks.pgd import pgd_attack
from robust_jax.types import Count


@schema.checked
def fgsm(key, logits_fn, images, labels, *, epsilon, noise=None,
         norm: threat_models.Norm = 'linf', order: threat_models.Order = 'auto',
         l1_top_k: Count = 1):
  """One step of length epsilon along the steepest ascent of the cross-entropy.

  Arguments and result as `pgd_attack` (with noise: of the SmoothAdv objective). For l1 the largest
  entry of the gradient changes, by epsilon or as far as the box lets it; then the next one, until
  epsilon is used up. With order 'ball_only' it is that entry alone.

  Reference:
    Goodfellow et al., Explaining and harnessing adversarial examples, 2015; Shaham et al.,
    Understanding adversarial training, 2015, equation 11.
  """
  return pgd_attack(key, logits_fn, images, labels, epsilon=epsilon, noise=noise, norm=norm,
                    num_steps=1, step_ratio=1., random_start=False, order=order, l1_top_k=l1_top_k)
