"""Wrong arguments of public functions: one line that names them, and no result that could pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import attacks, bounds, inputs, losses, schema, smoothing
from robust_jax.attacks import ATTACKS
from robust_jax.certification import certify, certify_splitting, count, predict
from robust_jax.training import train_step
from robust_jax.types import Batch

KEY = jax.random.key(0)
WEIGHTS = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
IMAGES = np.random.default_rng(1).uniform(size=(4, 2, 2, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0])
CERTIFY = dict(sigma=0.5, n0=5, n=10, batch_size=4)


def logits(images):
  return images.reshape(len(images), -1) @ WEIGHTS


IMAGE_ERRORS = [
    (dict(images=np.uint8(255 * IMAGES)), 'images .*uint8.*255'),
    (dict(images=255 * IMAGES), r'images .*\[0, 1\]'),
    (dict(images=IMAGES * np.nan), r"images .*nan at \[0 0 0 0\]"),
    (dict(images=IMAGES[:0]), r'images .*\(0, 2, 2, 3\)'),
    (dict(images=np.float32(0.5)), r'images .*\(\)'),
]
LOGITS_ERRORS = [
    (dict(logits_fn=lambda x: logits(x).argmax(-1)), r'logits_fn .*int32 of shape \(4,\)'),
    (dict(logits_fn=lambda x: logits(x).mean(0)), r'logits_fn .*\(3,\)'),
    (dict(logits_fn=lambda x: logits(x).mean(0, keepdims=True)), r'logits_fn .*\(1, 3\)'),
    (dict(logits_fn=lambda x: logits(x).astype(int)), 'logits_fn .*int32'),
    (dict(logits_fn=lambda x: logits(x)[:, None]), r'logits_fn .*\(4, 1, 3\)'),
    (dict(logits_fn=lambda x: logits(x)[:, :1]), r'logits_fn .*\(4, 1\)'),
    (dict(logits_fn=lambda x: (logits(x), x)), 'logits_fn .*tuple'),
    (dict(images=IMAGES[0]), r'logits_fn .* batch of \d of shape \(2, 3\)'),
]
ATTACK_ERRORS = [
    (dict(labels=LABELS[:1]), r'labels .*\(4,\).*\(1,\)'),
    (dict(labels=LABELS[:, None]), r'labels .*\(4, 1\)'),
    (dict(labels=np.eye(3)[LABELS]), r'labels .*float64 of shape \(4, 3\)'),
    (dict(labels=LABELS + 1), r'labels .*\[0, 2\].* 3'),
    (dict(labels=LABELS - 1), 'labels .*-1'),
    (dict(epsilon=-0.1), 'epsilon .*-0.1'),
    (dict(epsilon=np.nan), 'epsilon .*nan'),
    (dict(epsilon=[0.1]), r'epsilon .*\(1,\)'),
    (dict(noise=IMAGES), r'noise .*\[4, 2, 2, 3\]'), (dict(noise=0.25), r'noise .*\[\]'),
    (dict(noise=np.zeros((0, *IMAGES.shape))), r'noise .*\[0, 4'),
]


@pytest.mark.parametrize('wrong, message', IMAGE_ERRORS + LOGITS_ERRORS + ATTACK_ERRORS)
@pytest.mark.parametrize('name', ATTACKS)
def test_attacks_refuse(name, wrong, message):
  arguments = dict(logits_fn=logits, images=IMAGES, labels=LABELS, epsilon=0.1) | wrong
  with pytest.raises(ValueError, match=message) as error:
    ATTACKS[name](KEY, **arguments)
  assert '\n' not in str(error.value)


FUNCTIONS = [*ATTACKS.values(), attacks.smallest, bounds.crown, bounds.exact, certify_splitting]


@pytest.mark.parametrize('function, field', [
    (function, field) for function in FUNCTIONS for field in schema.fields(function)])
def test_hyper_parameters_are_held_to_their_annotations(function, field):
  for value in ([1], 'nothing', object(), *_out_of_range(schema.fields(function)[field].hint)):
    with pytest.raises(ValueError, match=f'^{field} must be .*, got ') as error:
      function(**{field: value})
    assert '\n' not in str(error.value)


def test_a_number_may_come_as_an_array():
  settings = dict(labels=LABELS, method='alpha')
  plain = bounds.crown(logits, IMAGES, 0.01, num_steps=2, chunk=4, **settings)
  arrays = bounds.crown(logits, IMAGES, 0.01, num_steps=jnp.asarray(2), chunk=np.int64(4),
                        **settings)
  np.testing.assert_array_equal(plain, arrays)


def _out_of_range(hint):
  if not schema.is_known(hint) or schema.plain_type(hint) not in (int, float):
    return ()
  return (-1, -1., np.float32(-1), jnp.asarray(-1), np.nan, np.inf) + (
      (2.5,) if schema.plain_type(hint) is int else ())


@pytest.mark.parametrize('name, norm, longest', [
    *((name, norm, longest) for name in ('pgd', 'apgd', 'square')
      for norm, longest in (('linf', 1), ('l2', 12**0.5), ('l1', 12)))])
def test_a_radius_is_no_longer_than_the_box(name, norm, longest):
  attack = functools.partial(ATTACKS[name], KEY, logits, IMAGES, LABELS, norm=norm)
  few = {'num_queries': 2} if name == 'square' else {'num_steps': 2}
  assert jnp.isfinite(attack(epsilon=longest, **few).images).all()
  with pytest.raises(ValueError, match=f'epsilon must be at most {longest:.4g} in {norm}.* got 14'):
    attack(epsilon=14, **few)
  if name == 'pgd':  # Without the box any length is one.
    assert jnp.isfinite(attack(epsilon=14., order='ball_only', **few).images).all()
  with pytest.raises(ValueError, match='epsilon must be at most 1 in linf'):
    attacks.autoattack(KEY, logits, IMAGES, LABELS, epsilon=8)


@pytest.mark.parametrize('name', ATTACKS)
def test_an_infinite_radius_is_for_attacks_that_look_for_the_closest_image(name):
  attack = functools.partial(ATTACKS[name], KEY, logits, IMAGES, LABELS, epsilon=np.inf)
  if name in ('ddn', 'fab', 'carlini_wagner'):
    assert jnp.isfinite(attack(num_steps=2).images).all()
  else:
    with pytest.raises(ValueError, match='epsilon .*finite.*inf'):
      attack()


@pytest.mark.parametrize('wrong, message', IMAGE_ERRORS + LOGITS_ERRORS + [
    (dict(example_ids=[0]), r'example_ids .*\(1,\)'),
    (dict(example_ids=[0., 1., 2., 3.]), 'example_ids .*float64'),
])
@pytest.mark.parametrize('function', [certify, predict])
def test_certification_refuses(function, wrong, message):
  arguments = dict(logits_fn=logits, images=IMAGES, sigma=0.5, n=10, batch_size=4) | wrong
  with pytest.raises(ValueError, match=message) as error:
    function(KEY, **arguments)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('function', [
    lambda: ATTACKS['pgd'](0, logits, IMAGES, LABELS, epsilon=0.1),
    lambda: smoothing.sample_noise(0, IMAGES, sigma=0.1, num_noise=1),
    lambda: count(0, logits, IMAGES, [0, 1, 2, 3], 0, 8, sigma=0.5, batch_size=4),
    lambda: certify(0, logits, IMAGES, **CERTIFY),
])
def test_a_number_is_no_key(function):
  with pytest.raises(ValueError, match='key .*int'):
    function()


def test_targets_are_classes():
  with pytest.raises(ValueError, match=r'targets .*\[0, 2\].* 3'):
    ATTACKS['pgd'](KEY, logits, IMAGES, LABELS, epsilon=0.1, targets=LABELS + 1)


@pytest.mark.parametrize('name', ['pgd', 'fgsm', 'ddn', 'fab', 'none'])
@pytest.mark.parametrize('labels, epsilon, valid', [
    (LABELS + 1, 0.1, LABELS < 2),
    (LABELS - 1, 0.1, LABELS > 0),
    (LABELS, np.float32([0.1, -0.1, np.nan, 0.]), [True, False, False, True]),
])
def test_under_jit_what_is_out_of_range_has_no_result(name, labels, epsilon, valid):
  attack = jax.jit(functools.partial(ATTACKS[name], KEY, logits))
  result = attack(IMAGES, labels, epsilon=epsilon)
  np.testing.assert_array_equal(np.isfinite(result.objective), valid)
  np.testing.assert_array_equal(np.isfinite(result.images).all(axis=(1, 2, 3)), valid)


@pytest.mark.parametrize('dtype', [np.float64, np.float16, jnp.bfloat16])
@pytest.mark.parametrize('name', ['pgd', 'ddn'])
def test_other_floating_point_images_are_attacked_in_float32(name, dtype):
  images = jnp.asarray(IMAGES).astype(dtype) if dtype == jnp.bfloat16 else IMAGES.astype(dtype)
  attack = functools.partial(ATTACKS[name], KEY, logits, labels=LABELS, epsilon=0.1)
  found, expected = (attack(images=x).images for x in (images, np.asarray(images, np.float32)))
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, expected)


def test_values_are_checked_within_jit_where_they_are_known():
  known = jnp.full((4, 2, 2, 3), 2.)
  with pytest.raises(ValueError, match=r'images .*\[0, 1\]'):
    jax.jit(lambda scale: scale * inputs.images(known).sum())(1.)


@pytest.mark.parametrize('wrong, message', [
    (dict(images=np.uint8(255 * IMAGES)), 'batch.images .*uint8'),
    (dict(labels=np.eye(3)[LABELS]), r'batch.labels .*\(4, 3\)'),
    (dict(labels=LABELS[:1]), r'batch.labels .*\(1,\)'),
    (dict(index=[0., 1., 2., 3.]), 'batch.index .*float64'),
    (dict(mask=np.ones((4, 1))), r'batch.mask .*\(4, 1\)'),
])
def test_a_train_step_refuses(wrong, message):
  batch = Batch(IMAGES, LABELS, np.arange(4), np.ones(4))._replace(**wrong)
  with pytest.raises(ValueError, match=message):
    train_step(None, batch, KEY, network=None, optimizer=None, method=None, steps_per_epoch=1)


def test_under_jit_a_loss_of_a_label_that_is_no_class_is_nan():
  for label in (-1, 3):
    for loss in (losses.cross_entropy, losses.margin, losses.dlr):
      assert jnp.isnan(jax.jit(loss)(jnp.ones((1, 3)), jnp.array([label]))[0]), (loss, label)
