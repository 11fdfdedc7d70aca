"""Whether logged bounds are those of this network, and the verdicts those of the logged figures."""

import collections
from pathlib import Path

import numpy as np

from robust_jax import analysis
from robust_jax import workdir as workdirs
from robust_jax.errors import MismatchError
from robust_jax.stages import images, relogged, weights
from robust_jax.stages.bound import judged, settings
from robust_jax.workdir import records

# Another machine sums in another order, which many steps of an attack may make more of.
_TOLERANCE = {'rtol': 1e-3, 'atol': 1e-3}


def verify_bounds(run, workdir):
  """Bounds and attacks logged images again; says what differs, and keeps it in verify_bound.json.

  The verdict of every line must follow from its figures. Then config.verify.sample of the images,
  spread over the log (0: all), go through the stage again.

  Raises:
    UserError: the log is malformed, or its settings are others.
    MismatchError: it is of other parameters, or something differs.
  """
  path, record = Path(workdir) / 'bound.jsonl', Path(workdir) / 'verify_bound.json'
  loaded = weights.load(run, workdir)
  log = analysis.read_bound(path)
  relogged.check_origin(path, log.header, loaded.origin)
  records.check_same(path, log.header, settings(run, loaded))
  record.unlink(missing_ok=True)  # Of the last verification.
  wanted, idx = images.chosen(run, run.bound), log.idx.tolist()
  known = {*idx} & {*wanted}
  chosen = relogged.spread([i for i in wanted if i in known], run.verify.sample)
  problems, again = collections.defaultdict(list), []
  for i, text in (*_verdicts(log), *relogged.compare_images(
      wanted, idx, relogged.is_finished(workdir, 'bound'), section='bound', stage='bound',
      done='bounded'),
                  *relogged.compare_labels(run, {i: label for i, label in zip(
                      idx, log.label.tolist()) if i in known}),
                  *_again(run, loaded.logits_fn, _lines(path, chosen), again)):
    problems[i].append(text)
  relogged.print_problems(problems)
  undecided = f'; {len(again)} verdicts of the exact verifier were not reached in its time' if (
      again) else ''
  print(f'verify: {len([i for i in chosen if i not in problems])} of {len(chosen)} images bounded '
        f'and attacked again are as logged; {len(idx) - len(problems)} of {len(idx)} images have '
        f'the verdicts of their figures{undecided}', flush=True)
  workdirs.write_json(record, {
      'finished': workdirs.now(), 'images': len(idx), 'made_again': len(chosen),
      'undecided': len(again), 'problems': problems,
      'environment': workdirs.environment(run.devices)})
  if problems:
    raise MismatchError(f'{path}: {len(problems)} of {len(idx)} images are not as logged')


def _lines(path, chosen):
  """{idx: lines} of the chosen images."""
  found = {idx: [] for idx in chosen}
  for entry in records.read(path)[1:]:
    if entry['idx'] in found:
      found[entry['idx']].append(entry)
  return found


def _verdicts(log):
  """(idx, line) of the verdicts that do not follow from the figures beside them."""
  clean = np.broadcast_to((log.predict != log.label)[:, None], log.verdict.shape)
  attacked, bounded = log.adversarial != log.label[:, None], log.lower > 0
  by = np.select([clean, attacked, bounded], ['clean', 'attack', 'bound'], '')
  # What the exact verifier adds: an image that is misclassified, or a bound.
  exact = (log.by == 'exact') & bool(log.header['exact']) & np.where(
      log.falsified, by == 'attack', by == 'bound')
  wrong = (by != log.by) & ~exact
  # What was found, and proved, within a radius holds within the larger, and smaller, ones.
  wrong[:, 1:] |= (log.margin[:, 1:] > log.margin[:, :-1]) | (log.verified[:, 1:]
                                                              & ~log.verified[:, :-1])
  wrong[:, 1:] |= attacked[:, :-1] & ~attacked[:, 1:]
  # After a radius that the bound does not verify there is none.
  wrong[:, 1:] |= bounded[:, 1:] & (log.by[:, 1:] != 'exact') & (log.by[:, :-1] != 'bound')
  for i, j in np.argwhere(wrong):
    yield int(log.idx[i]), (f'epsilon {log.epsilons[j]:.4g}: {log.verdict[i, j]} by '
                            f'{log.by[i, j] or None} does not follow from its figures')


def _again(run, logits_fn, logged, undecided):
  """(idx, line) of what comes out otherwise than logged, {idx: lines}; notes in `undecided` the idx
  of verdicts that were not reached again.
  """
  for lines in judged(run, logits_fn, [*logged]):
    exact = False
    for before, now in zip(logged[lines[0]['idx']], lines):
      idx, at = now['idx'], f'epsilon {now["epsilon"]:.4g}: '
      names, is_exact = ('predict', 'adversarial', 'margin', 'lower'), 'exact' in (
          before['by'], now['by'])
      exact |= is_exact
      if exact:  # What it finds depends on its time, and counts at larger radii too.
        names = ('predict',)
      if is_exact:
        if now['verdict'] == 'unknown':
          undecided.append(idx)
        elif 'unknown' != before['verdict'] != now['verdict']:
          yield idx, f'{at}{before["verdict"]} is logged, {now["verdict"]} now'
      for name in names:
        if not _is_close(before[name], now[name]):
          yield idx, f'{at}{name} {before[name]} is logged, {now[name]} now'


def _is_close(before, now):
  if None in (before, now) or isinstance(now, int):
    return before == now
  return np.isclose(before, now, **_TOLERANCE)
