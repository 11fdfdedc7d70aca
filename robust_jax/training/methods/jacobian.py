"""Penalties on the derivative of the network's outputs with respect to the image."""

from typing import Literal

import jax
import jax.numpy as jnp

from robust_jax import keys
from robust_jax.training.methods.augmentation import standard
from robust_jax.training.methods.tangent import basis_of
from robust_jax.types import Fraction, Index, MethodOutput, NonNegative

Output = Literal['probabilities', 'logits']


def jacobian_penalty(key, network, params, batch_stats, batch, progress, *,
                     weight: NonNegative = 0.1, output: Output = 'probabilities',
                     num_projections: Index = 0, label_smoothing: Fraction = 0.):
  """Cross-entropy and contractive penalty: L(x, y) + beta ||d o(x) / d x||_F^2.

  The Jacobian is that in evaluation mode, so that of an example it depends on no other. The
  paper penalises each layer's Jacobian in place of this one, which it approximates.

  Args:
    weight: beta.
    output: o, the network's 'probabilities' or 'logits'.
    num_projections: 0 for the exact norm, by one backward pass a class; r > 0 for its unbiased
      estimate (K / r) sum_i ||v_i^T d o / d x||^2, v_i random units in the K outputs, by r.
    label_smoothing: see `losses.cross_entropy`.

  The other arguments and the result as `types.Method`; the metric 'penalty' is the squared norm.

  Reference:
    Gu & Rigazio, Towards deep neural network architectures robust to adversarial examples, 2014,
    section 4; the estimate: Hoffman et al., Robust learning with Jacobian regularization, 2019.
  """
  outputs = _outputs(network, params, batch_stats, output)
  _, pull = jax.vjp(outputs, batch.images)
  classes = jax.eval_shape(outputs, batch.images).shape[-1]
  if num_projections == 0:
    cotangents = jnp.broadcast_to(jnp.eye(classes)[:, None], (classes, len(batch.images), classes))
    scale = 1.
  else:
    draw_key = keys.uses(key, len(batch.images), 2)[1]
    draw = lambda i, k: jax.random.normal(
      jax.random.fold_in(k, i), (classes,), jnp.float32)
    draws = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(
        jnp.arange(num_projections), draw_key)
    cotangents = draws / jnp.linalg.norm(draws, axis=-1, keepdims=True)
    scale = classes / num_projections
  rows = jax.vmap(lambda v: pull(v)[0])(cotangents)
  penalty = scale * jnp.sum(jnp.square(rows), axis=(0, *range(2, rows.ndim)))
  return _penalised(key, network, params, batch_stats, batch, progress, penalty, weight,
                    label_smoothing)


def tangent_penalty(key, network, params, batch_stats, batch, progress, *,
                    weight: NonNegative = 0.1, output: Output = 'probabilities',
                    label_smoothing: Fraction = 0.):
  """Cross-entropy and tangent penalty: L(x, y) + beta sum_u ||<u, d_x o(x)>||^2.

  The sum is over the tangent directions u of the image, batch.aux['tangents'], and over the
  outputs; each u costs one forward derivative. In evaluation mode, as for `jacobian_penalty`.

  Args:
    weight: beta.
    output: o, the network's 'probabilities' or 'logits'.
    label_smoothing: see `losses.cross_entropy`.

  The other arguments and the result as `types.Method`; the metric 'penalty' is the sum.

  Raises:
    ValueError: the batch has no tangents.

  Reference:
    Shaham et al., Understanding adversarial training, 2015, equation 4; Rifai et al., The manifold
    tangent classifier, 2011.
  """
  basis = basis_of(batch)
  outputs = _outputs(network, params, batch_stats, output)
  directions = jnp.moveaxis(basis, -1, 0).reshape(-1, *batch.images.shape)
  _, push = jax.linearize(outputs, batch.images)
  penalty = jnp.sum(jnp.square(jax.vmap(push)(directions)), axis=(0, 2))
  return _penalised(key, network, params, batch_stats, batch, progress, penalty, weight,
                    label_smoothing)


def _outputs(network, params, batch_stats, output):
  logits_fn = network.eval_logits({'params': params, 'batch_stats': batch_stats})
  if output == 'logits':
    return logits_fn
  return lambda images: jax.nn.softmax(logits_fn(images))


def _penalised(key, network, params, batch_stats, batch, progress, penalty, weight,
               label_smoothing):
  model_key = keys.uses(key, len(batch.images), 2)[0]
  plain = standard(model_key, network, params, batch_stats, batch, progress,
                   label_smoothing=label_smoothing)
  return MethodOutput(plain.loss + weight * penalty, plain.batch_stats,
                      {**plain.metrics, 'penalty': penalty})
