"""AutoAttack in the attack stage: part by part on what is left, resumed after any batch.

The way of an image is the parts at the smallest radius, then at the next; what breaks it there
breaks it at all larger ones. attack.progress.jsonl has a line for each batch: its part, its
seconds, the images that it decided, which are broken or have withstood everything, and how far the
others are. attack.jsonl is made of it at the end: before, the images that are decided are the weak
ones, and their accuracy would say nothing.
"""

import dataclasses
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from robust_jax import analysis, data, keys, smoothing
from robust_jax.attacks.autoattack import (
    PARTS,
    VERSIONS,
    PartResult,
    doubts,
    examine,
    line,
    look,
    packed,
    parts,
)
from robust_jax.devices import parallel
from robust_jax.report import pages
from robust_jax.stages import images
from robust_jax.workdir import monitoring, records


@dataclasses.dataclass
class _State:
  """How far the images are. Groups are 0, the images as they are, then each part at each radius.

  Attributes:
    at: {index: (group, runs of it that were withstood)} of images that are undecided.
    decided: {index: (group, class)} of those that a group broke; None: it has withstood everything.
    seconds: of each group.
    zero: how many rightly classified images had the gradient zero.
    not_finite: images with a gradient that was not finite.
  """

  at: dict[int, tuple[int, int]]
  decided: dict[int, tuple[int | None, int]]
  seconds: np.ndarray
  zero: int = 0
  not_finite: set[int] = dataclasses.field(default_factory=set)

  def robust_accuracy(self, group, total):
    """The fraction of `total` images that no group up to this one has broken."""
    broken = sum(by is not None and by <= group for by, _ in self.decided.values())
    return 1 - broken / total

  def add(self, entry):
    """Adds a line of attack.progress.jsonl."""
    self.seconds[entry['group']] += entry['seconds']
    self.zero += entry.get('zero', 0)
    self.not_finite |= {*entry.get('not_finite', ())}
    self.at |= {index: (group, number) for index, group, number in entry['at']}
    for index, group, predicted in entry['decided']:
      self.decided[index] = group, predicted
      self.at.pop(index, None)


def attack(run, workdir, logits_fn, header, indices, *, predict, save_gallery):
  """Runs the suite of config.attack on test images, and goes on where it was interrupted.

  Args:
    run, workdir: as of any stage.
    logits_fn: images -> logits.
    header: that of attack.jsonl.
    indices: the images of the split.
    predict: [batch, ...] images -> classes.
    save_gallery: (batch, clean, attacked, predicted) -> None; see `stages.attack`.

  Returns:
    {'autoattack': what is kept of it in stages.json: parts, flags, report}.
  """
  settings, config = run.evaluation, run.config['attack']
  suite = parts(config['version'], config['norm'], run.test_data.num_classes)
  radii = sorted({*settings.epsilons})
  groups = [(epsilon, part) for epsilon in radii for part in suite]
  group_names = ['clean', *(part.name for _, part in groups)]
  path, progress = Path(workdir) / 'attack.jsonl', Path(workdir) / 'attack.progress.jsonl'
  batch_size = images.even_size(len(indices), settings.batch_size, len(run.devices))
  state = _resumed(progress, header, 1 + len(groups))
  gallery = [] if settings.gallery and not (Path(workdir) / 'gallery.npz').exists() else None

  def take(chosen):
    return data.take(run.test_data, np.resize(chosen, batch_size))

  def log(group, began, decided, passed, **more):
    """Notes a batch. decided: [[index, group that broke it or None, class], ...]."""
    entry = {'group': group, 'seconds': time.monotonic() - began, 'decided': decided, 'at': passed,
             **more}
    records.append(progress, entry)
    state.add(entry)

  def result(group):
    return PartResult(
        group_names[group], state.robust_accuracy(group, len(indices)),
        float(state.seconds[group]), sum(by == group for by, _ in state.decided.values()))

  def say(group):
    where = f'{config["norm"]} {pages.epsilon(groups[group - 1][0])}: ' if (
        group and len(radii) > 1) else ''
    print(f'attack: {where}{line(result(group))}', flush=True)

  def advance(bar, group, count):
    so_far = f'robust accuracy {state.robust_accuracy(group, len(indices)):.1%}'
    bar.set_postfix_str(so_far, refresh=False)
    bar.update(count)

  # Flags that the classifier raises by itself.
  flags = examine(logits_fn, take(indices[:batch_size]).images, suite) if indices else {}
  for sentence in flags.values():
    print(f'attack: warning: {sentence}', flush=True)

  look_at = parallel.map_rows(_look_at, run.devices)
  new = [index for index in indices if index not in state.at and index not in state.decided]
  bar = monitoring.bar(desc='attack clean', total=len(new), unit='image')
  for first in range(0, len(new), batch_size):
    began, chosen = time.monotonic(), new[first:first + batch_size]
    batch = take(chosen)
    clean = predict(batch.images)
    zero = look_at(logits_fn, batch)
    rows = range(len(chosen))
    right = [row for row in rows if clean[row] == batch.labels[row]]
    log(0, began, [[chosen[row], 0, int(clean[row])] for row in rows if row not in right],
        [[chosen[row], 1, 0] for row in right], zero=int(sum(zero[row] for row in right)))
    advance(bar, 0, len(chosen))
  bar.close()
  say(0)

  find_by = {part.name: _finder(run, part) for part in suite}
  for group, (epsilon, part) in enumerate(groups, 1):
    not_finite = []

    def attacked(jobs, epsilon=epsilon, part=part, not_finite=not_finite):
      chosen, only = np.array(jobs).T
      batch = take(chosen)
      found, undefined = find_by[part.name](
          (run.key('attack'), logits_fn, epsilon),
          (batch, np.resize(only, batch_size).astype(np.int32)))
      predicted = predict(found)
      not_finite[:] = sorted({int(i) for i, odd in zip(chosen, undefined) if odd})
      return [(int(predicted[row]), found[row]) if predicted[row] != batch.labels[row] else None
              for row in range(len(jobs))]

    left = {index: number if at == group else 0
            for index, (at, number) in state.at.items() if at <= group}
    bar = monitoring.bar(desc=f'attack {part.name}', total=len(left), unit='image')
    advance(bar, group, 0)
    began = time.monotonic()
    for outcomes in packed(attacked, left, part.runs, batch_size):
      decided, passed = [], []
      for index, number, outcome in outcomes:
        if outcome is not None:
          predicted, image = outcome
          decided.append([index, group, predicted])
          if gallery is not None and epsilon <= settings.epsilons[len(settings.epsilons) // 2]:
            gallery.append((index, predicted, image))
        elif number < part.runs:
          passed.append([index, group, number])
        elif group < len(groups):
          passed.append([index, group + 1, 0])
        else:
          decided.append([index, None, int(run.test_data.labels[index])])
      log(group, began, decided, passed, not_finite=not_finite)
      if gallery and len(gallery) >= settings.gallery:
        gallery = _save(run, save_gallery, gallery)
      advance(bar, group, len(decided) + sum(at > group for _, at, _ in passed))
      began = time.monotonic()
    bar.close()
    say(group)
  if gallery:
    _save(run, save_gallery, gallery)

  results = [result(group) for group in range(len(group_names))]
  for rank in range(len(radii)):
    ours = results[1 + rank * len(suite):1 + (rank + 1) * len(suite)]
    more = doubts([results[0], *ours], state.zero, len(state.not_finite))
    for name, sentence in more.items():
      if name not in flags:
        print(f'attack: warning: {sentence}', flush=True)
    flags |= more
  records.resume(path, keep=lambda entry: 'header' in entry)
  records.append(path, *(
      _entry(index, int(run.test_data.labels[index]), *state.decided[index], groups,
             settings.epsilons) for index in indices))
  report = _report(run, results[-1].robust_accuracy, len(indices), suite)
  print(f'attack: {report}', flush=True)
  if config['version'] == 'standard':
    records.write_json(Path(workdir) / 'robustbench.json', robustbench(
        run, results[0].robust_accuracy, results[-1].robust_accuracy, len(indices), flags))
  epsilons = [None, *(epsilon for epsilon, _ in groups)]
  return {'autoattack': {
      'parts': [{'epsilon': epsilon, **each._asdict()} for epsilon, each in zip(epsilons, results)],
      'flags': flags, 'report': report}}


def _resumed(path, header, num_groups):
  """The _State that attack.progress.jsonl has noted."""
  lines = records.resume(path, {'header': header})
  records.check_same(path, lines[0].get('header', {}), header)
  state = _State({}, {}, np.zeros(num_groups))
  for entry in lines[1:]:
    state.add(entry)
  return state


def _entry(index, label, by, predicted, groups, epsilons):
  """A line of attack.jsonl on an image that group `by` has broken, as class `predicted`."""
  first = np.inf if by is None else groups[by - 1][0] if by else 0.
  name = None if by is None else groups[by - 1][1].name if by else 'clean'
  return {'idx': index, 'label': label, 'clean': label if by != 0 else predicted,
          'adversarial': [predicted if epsilon >= first else label for epsilon in epsilons],
          'by': name}


def _look_at(replicated, batch):
  """[batch] bool: the gradient of the cross-entropy is zero."""
  return look(smoothing.victim(replicated), batch.labels, batch.images)[1]


def _finder(run, part):
  """((key, logits_fn, epsilon), (batch, only)) -> (images, undefined) of a part's attack."""

  def find(replicated, rows):
    (key, logits_fn, epsilon), (batch, only) = replicated, rows
    own_keys = keys.fold_in(keys.fold_in(key, batch.index), 2 + PARTS.index(part.name))
    result = part.attack(own_keys, logits_fn, batch.images, batch.labels, epsilon=epsilon,
                         only=only)
    return result.images, jnp.broadcast_to(result.undefined, len(batch.images))

  return parallel.map_rows(find, run.devices)


def _save(run, save_gallery, found):
  """Makes gallery.npz of [(index, class, image)], the first that were broken."""
  found = found[:run.evaluation.gallery]
  indices, predicted, adversarial = zip(*found)
  batch = data.take(run.test_data, list(indices))
  radii = len(run.evaluation.epsilons)
  save_gallery(batch, np.asarray(batch.labels), [np.stack(adversarial)] * radii,
               np.stack([predicted] * radii, axis=-1))


def _report(run, accuracy, num_images, suite):
  """The sentence that says which number to report."""
  config, dataset = run.config['attack'], run.test_data
  low, high = analysis.accuracy_interval(accuracy, num_images)
  suite_name = f'AutoAttack {config["version"]}' if config['version'] in VERSIONS else (
      'parts of AutoAttack')
  return (f'report a robust accuracy of {accuracy:.2%} (95% interval {low:.2%} to {high:.2%}): '
          f'{config["norm"]} {pages.epsilon(max(run.evaluation.epsilons))}, the worst case over '
          f'{", ".join(part.name for part in suite)} ({suite_name}), on {num_images:,} of the '
          f'{dataset.num_examples:,} images of {dataset.name} {dataset.split}')


def robustbench(run, clean, robust, num_images, flags):
  """A `model_info` JSON of RobustBench, at the largest radius; what only its author knows is ''."""
  dataset = run.test_data
  part = (f'{num_images:,} of {dataset.num_examples:,} images. '
          if num_images < dataset.num_examples else '')
  return {'link': '', 'name': '', 'authors': '', 'additional_data': bool(run.extra.share),
          'number_forward_passes': 1, 'dataset': dataset.name, 'venue': '',
          'architecture': run.config['model']['name'],
          'eps': pages.epsilon(max(run.evaluation.epsilons)), 'clean_acc': f'{100 * clean:.2f}',
          'reported': f'{100 * robust:.2f}', 'autoattack_acc': f'{100 * robust:.2f}',
          'footnote': (part + ' '.join(flags.values())).strip(), 'unreliable': bool(flags)}
