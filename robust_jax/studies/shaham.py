"""How much more stable robust optimisation makes networks (Shaham et al. 2015, section 6).

Of a sweep with one baseline and networks trained on one-step adversarials of some norms:

- the adversarial set A: the one-step adversarials of every norm, at the radius that the network of
  that norm was trained with, made on the baseline from test images that it classifies correctly;
  those that it then misclassifies, so that it has accuracy 0 on A by construction;
- the accuracy of every network on the test split and on A (tables 1 and 2);
- its accuracy against the radius of one-step adversarials made on its own parameters, for each
  norm (figures 3 and 6);
- images that the baseline misclassifies when a single pixel changes (figure 1).
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_jax import analysis, keys, losses, report, workdir
from robust_jax.attacks import threat_models
from robust_jax.config import experiment, sections
from robust_jax.devices import parallel
from robust_jax.devices.choose import choose_devices
from robust_jax.errors import UserError
from robust_jax.report import charts, gallery, pages
from robust_jax.stages import images, weights

# Stages of each run of the sweep.
STAGES = ('train',)
BASELINE = 'baseline'
# (accuracy on the test split, on the paper's own A), in per cent.
PUBLISHED = {
    'mnist': {BASELINE: (99.09, 0.), 'l1': (99.16, 33.83), 'l2': (99.28, 76.55),
              'linf': (99.33, 79.96)},
    'cifar10': {BASELINE: (90.79, 0.), 'l1': (91.11, 56.31), 'l2': (91.04, 59.92),
                'linf': (91.36, 65.01)},
}
# Radii of the curves, in units of the radius of training.
FACTORS = np.arange(9) / 4


class Net(NamedTuple):
  """One trained network of the sweep.

  Attributes:
    name: 'baseline', or the norm of the one-step attack that it was trained with.
    run: its `experiment.Run`.
    logits_fn: images -> logits.
  """

  name: str
  run: Any
  logits_fn: Any

  @property
  def attack(self):
    """The config of the one-step attack of its training."""
    return self.run.components['method']['attack']

  @property
  def epsilon(self):
    """The radius of its training, in pixel units."""
    return self.run.components['method']['epsilon']


class AdversarialSet(NamedTuple):
  """A: what the baseline misclassifies, and what it was made from.

  Attributes:
    images: [num, ...] adversarial images.
    clean: [num, ...] the images they were made from.
    labels: [num].
    index: [num], in the test split.
    norms: [num], names of the norms.
    predicted: [num, num_nets], the class of the adversarial image by each network.
  """

  images: np.ndarray
  clean: np.ndarray
  labels: np.ndarray
  index: np.ndarray
  norms: np.ndarray
  predicted: np.ndarray


def check(configs):
  """'baseline', or the norm of its one-step attack, of each network of a sweep.

  Args:
    configs: the resolved config of each point.

  Raises:
    UserError: there is not one baseline and at least one network for another norm each.
  """
  names = []
  for number, config in enumerate(configs):
    method = config['method']
    inner = method.get('attack', {})
    if method['name'] == 'standard':
      names.append(BASELINE)
    elif method['name'] == 'adversarial' and inner['name'] == 'fgsm':
      names.append(inner['norm'])
    else:
      raise UserError(f"sweep() point {number}: config.method must be 'standard', or 'adversarial' "
                      f"with the attack 'fgsm', got {method['name']!r}")
  if len(names) < 2 or names.count(BASELINE) != 1 or len({*names}) < len(names):
    raise UserError(f'sweep(): there must be one {BASELINE} and one network for each of some '
                    f'norms, got {", ".join(names)}')
  return names


def compare(folder, num_devices):
  """Writes shaham.html and shaham/*.csv|.md|.tex|.svg|.pdf into the folder of a sweep.

  Args:
    folder: of the sweep, all of whose trainings are finished.
    num_devices: as --devices.

  Returns:
    (path of the page, summary for a terminal).

  Raises:
    UserError: the sweep is not a baseline and robust networks, or one is not trained.
  """
  folder = Path(folder)
  nets = load(folder, num_devices)
  robust, run = nets[1:], nets[0].run
  chosen = images.chosen(run, run.evaluation)
  batch_size = images.even_size(len(chosen), run.evaluation.batch_size, len(run.devices))
  test = list(images.batches(run.test_data, chosen, batch_size, pad=True))
  found = adversarial_set(nets, test)
  lines = {net.name: own_curves(nets, net, test) for net in robust}
  tables = {'accuracy': accuracy_table(nets, test, found),
            'accuracy_against_epsilon': curve_table(nets, robust, lines)}
  drawn = [_chart(nets, net, lines[net.name]) for net in robust]
  (folder / 'shaham').mkdir(exist_ok=True)
  for name, values in tables.items():
    report.write_table(folder / 'shaham' / name, values)
  files = {chart.name: [f'shaham/{path.name}' for path in report.write_figure(
      folder / 'shaham' / chart.name, chart)] for chart in drawn}
  flips = np.flatnonzero(found.norms == 'l1')[:run.evaluation.gallery]
  cards, _ = gallery.adversarial({
      'images': found.clean[flips], 'adversarial': found.images[flips],
      'index': found.index[flips], 'labels': found.labels[flips], 'clean': found.labels[flips],
      'predicted': found.predicted[flips, 0]}, run.test_data.class_names)
  page = folder / 'shaham.html'
  workdir.write_bytes(page, pages.render(
      'shaham.html', title='Robust optimisation', tables=tables, charts=drawn, files=files,
      cards=cards, published=run.data.name in PUBLISHED, num_test=len(chosen),
      facts=[f'{run.config["model"]["name"]} on {run.data.name}',
             f'{run.train.num_epochs:g} epochs', f'seed {run.config["seed"]}'],
      sizes={net.name: int(np.sum(found.norms == net.name)) for net in robust},
      styles=[charts.style(i) for i in range(len(nets))]).encode())
  return page, (f'{len(chosen)} test images, {len(found.labels)} adversarials\n\n'
                f'{analysis.to_text(tables["accuracy"])}')


def load(folder, num_devices):
  """The networks of a sweep, the baseline first, then in the order of the sweep.

  Raises:
    UserError: as `check`, or one is not trained.
  """
  record = workdir.read_json(Path(folder) / report.SWEEP)
  places = [Path(folder) / entry['workdir'] for entry in record['runs']]
  configs = [sections.resolve(sections.saved_config(place)) for place in places]
  names = check(configs)
  devices = choose_devices(num_devices, [configs[0]['evaluation']['batch_size']])
  nets = []
  for name, config, place in zip(names, configs, places):
    run = experiment.build(config, devices)
    nets.append(Net(name, run, weights.load(run, place).logits_fn))
  return sorted(nets, key=lambda net: net.name != BASELINE)


def adversarial_set(nets, batches):
  """The set A of the module's docstring.

  Args:
    nets: list of Nets: the baseline, which is attacked, and those whose attacks and radii are used.
    batches: list of `types.Batch`.

  Returns:
    AdversarialSet.

  Raises:
    UserError: it is empty.
  """
  baseline, *robust = nets
  devices, key, parts = baseline.run.devices, baseline.run.key('attack'), []
  classify = _classify(tuple(devices))
  for net in robust:
    attack = experiment.bind('attack', net.attack)

    def perturb(replicated, batch, attack=attack):
      logits_fn, epsilon = replicated
      return attack(keys.fold_in(key, batch.index), logits_fn, batch.images, batch.labels,
                    epsilon=epsilon).images

    perturb = parallel.map_rows(perturb, devices)
    for batch in batches:
      images = perturb((baseline.logits_fn, net.epsilon), batch)
      clean = classify(baseline.logits_fn, batch.images)
      predicted = np.stack([classify(each.logits_fn, images) for each in nets], axis=-1)
      kept = (batch.mask > 0) & (clean == batch.labels) & (predicted[:, 0] != batch.labels)
      parts.append(AdversarialSet(
          images[kept], batch.images[kept], batch.labels[kept], batch.index[kept],
          np.full(kept.sum(), net.name), predicted[kept]))
  found = AdversarialSet(*map(np.concatenate, zip(*parts)))
  if not len(found.labels):
    raise UserError('config.epsilon: no one-step attack changes a class of the baseline, so that '
                    'the adversarial set is empty')
  return found


def accuracy_table(nets, batches, found):
  """Tables 1 and 2: accuracies in per cent, with the published ones where there are any.

  Args:
    nets: list of Nets, the baseline first.
    batches: list of `types.Batch` of test images.
    found: AdversarialSet.

  Returns:
    `analysis.Table`, a row for each network.
  """
  classify = _classify(tuple(nets[0].run.devices))
  norms = [net.name for net in nets[1:]]
  published = PUBLISHED.get(nets[0].run.data.name, {})
  count = sum(batch.mask.sum() for batch in batches)
  rows = []
  for net, predicted in zip(nets, found.predicted.T):
    correct = sum((batch.mask * (classify(net.logits_fn, batch.images) == batch.labels)).sum()
                  for batch in batches)
    on_set = predicted == found.labels
    cells = [correct / count, on_set.mean(),
             *(on_set[found.norms == norm].mean() if (found.norms == norm).any() else None
               for norm in norms)]
    rows.append([_title(net), *(None if cell is None else f'{100 * cell:.2f}' for cell in cells),
                 *(f'{figure:.2f}' for figure in published.get(net.name, ()))])
  columns = ['network', 'test %', 'A %', *(f'A, {norm} %' for norm in norms)]
  if published:
    columns += ['published test %', 'published A %']
  return analysis.Table(columns, rows)


@functools.cache
def _classify(devices):
  """(logits_fn, images) -> classes."""
  return parallel.map_rows(lambda logits_fn, images: losses.predicted(logits_fn(images)),
                           list(devices))


def own_curves(nets, robust, batches):
  """Accuracy against the radius of the one-step attack on each network's own parameters.

  Args:
    nets: the Nets that are attacked and judged.
    robust: the Net whose norm and radius they are; the radii are FACTORS times its own.
    batches: list of `types.Batch`.

  Returns:
    [num_nets, len(FACTORS)].
  """
  attack = robust.attack

  def threat_model(epsilon):
    return threat_models.make(attack['norm'], epsilon, order=attack['order'],
                              l1_top_k=attack['l1_top_k'])

  # The gradient is the same at every radius.
  def gradient_of(logits_fn, batch):
    loss = lambda x: jnp.sum(losses.cross_entropy(logits_fn(x), batch.labels))
    gradient = jax.grad(loss)(batch.images)
    finite = threat_models.all_finite(gradient)
    return jnp.where(threat_models.column(finite, gradient), gradient, 0)

  def correct(replicated, rows):
    key, logits_fn, epsilon = replicated
    batch, gradient = rows
    within = threat_model(epsilon)
    moved = within.project(within.ascend(keys.fold_in(key, batch.index), batch.images, gradient,
                                         epsilon), batch.images)
    return batch.mask * (losses.predicted(logits_fn(moved)) == batch.labels)

  gradient_of, correct = (parallel.map_rows(each, robust.run.devices)
                          for each in (gradient_of, correct))
  sums, count = np.zeros((len(nets), len(FACTORS))), 0.
  for batch in batches:
    count += batch.mask.sum()
    for net, row in zip(nets, sums):
      gradient = gradient_of(net.logits_fn, batch)
      for i, epsilon in enumerate(np.float32(robust.epsilon * FACTORS)):
        row[i] += correct((net.run.key('attack'), net.logits_fn, epsilon), (batch, gradient)).sum()
  return sums / count


def _title(net):
  return net.name if net.name == BASELINE else f'robust, {net.name} {net.epsilon:.4g}'


def curve_table(nets, robust, lines):
  """The curves as an `analysis.Table`: a row for each norm and radius, a column for each network.

  Where one std standardises all pixels, the radius in its units, the paper's, has a column too.

  Args:
    nets: list of Nets.
    robust: those whose norms and radii they are.
    lines: {name of one of robust: `own_curves`}.
  """
  std = np.ravel(nets[0].run.test_data.std)
  scaled = len(std) == 1 and std[0] != 1
  rows = [[net.name, f'{epsilon:.4g}', *([f'{epsilon / std[0]:.4g}'] if scaled else []),
           *(f'{100 * value:.2f}' for value in values)]
          for net in robust
          for epsilon, values in zip(net.epsilon * FACTORS, lines[net.name].T)]
  return analysis.Table(
      ['norm', 'epsilon', *(['epsilon / std'] if scaled else []),
       *(f'{each.name} %' for each in nets)], rows)


def _chart(nets, robust, lines):
  return charts.Chart(
      robust.name, f'Accuracy under the one-step {robust.name} attack on own parameters',
      f'{robust.name} epsilon, pixel units',
      [charts.Line(net.name, charts.style(i), robust.epsilon * FACTORS, y, marks=True)
       for i, (net, y) in enumerate(zip(nets, lines))],
      y_limits=(0, 1), percent=True, size=(520, 340))
