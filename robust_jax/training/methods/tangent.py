"""Robust optimisation within the tangent space of the data."""

import jax

from robust_jax import attacks, smoothing
from robust_jax.attacks import objectives, threat_models
from robust_jax.training.methods.adversarial import adversarial
from robust_jax.types import Count, Fraction, Index, NonNegative, Positive


def tangent(key, network, params, batch_stats, batch, progress, *, epsilon: NonNegative,
            num_steps: Count = 1, step_ratio: Positive = 1., random_start: bool = False,
            epsilon_warmup_epochs: Index = 0, clean_share: Fraction = 0.,
            label_smoothing: Fraction = 0.):
  """Adversarial training on perturbations along the data: x' in {x + B a: ||a||_2 <= epsilon}.

  One step is x + epsilon B B^T g / ||B^T g||, with g the gradient of the loss and B the tangent
  directions of the image, batch.aux['tangents'] (config.data.tangents). There is no box.

  Args:
    epsilon: l2 radius in pixel units.
    num_steps: ascent steps, 1 in the paper.
    step_ratio: the steps' total length over epsilon.
    random_start: start from a random point of the set.
    epsilon_warmup_epochs, clean_share, label_smoothing: see `adversarial`.

  The other arguments and the result as `adversarial`.

  Raises:
    ValueError: the batch has no tangents.

  Reference:
    Shaham et al., Understanding adversarial training, 2015, equations 12 and 13.
  """
  basis = basis_of(batch)

  def attack(key, logits_fn, images, labels, *, epsilon):
    victim = smoothing.victim(logits_fn)
    return attacks.pgd(
        key, victim.objective(objectives.cross_entropy, labels), images,
        threat_models.tangent(epsilon, basis), step_size=step_ratio * epsilon / num_steps,
        num_steps=num_steps, random_start=random_start,
        success_fn=lambda x: victim.predict(x) != labels)

  return adversarial(key, network, params, batch_stats, batch, progress, attack=attack,
                     epsilon=epsilon, epsilon_warmup_epochs=epsilon_warmup_epochs,
                     clean_share=clean_share, label_smoothing=label_smoothing)


def basis_of(batch):
  """The tangent directions of a batch, [batch, d, k].

  Raises:
    ValueError: it has none.
  """
  if 'tangents' not in batch.aux:
    raise ValueError("batch.aux has no 'tangents': config.data.tangents must be at least 1")
  return jax.lax.stop_gradient(batch.aux['tangents'])
