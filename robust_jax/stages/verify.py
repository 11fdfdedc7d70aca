"""The verify stage: are the logged certificates those of this classifier, and of their counts?

And the logged bounds, of which `verify_bound` makes some again.
"""

import collections
from pathlib import Path

import numpy as np

from robust_jax import workdir as workdirs
from robust_jax.certification import log, rules
from robust_jax.errors import MismatchError, UserError
from robust_jax.stages import images, relogged, weights
from robust_jax.stages.certify import rounds, settings
from robust_jax.stages.verify_bound import verify_bounds
from robust_jax.workdir import monitoring, records

# Statistics of another version of scipy may differ in their last digits.
_TOLERANCE = {'rtol': 1e-9, 'atol': 1e-12}


def verify(run, workdir):
  """Verifies the logs of certificates and of bounds that the workdir has.

  Raises:
    UserError: there is none, one is malformed, or its settings are others.
    MismatchError: a log is of other parameters, or something differs.
  """
  certified, bounded = ((Path(workdir) / name).exists() for name in (
      'certify.jsonl', 'bound.jsonl'))
  certified &= run.certify is not None
  if not certified and not bounded:
    raise UserError(f'--stages=verify: {workdir} has no certify.jsonl; run the certify stage first '
                    '(or the bound stage, for a bound.jsonl)')
  wrong = []
  for function, has_log in ((verify_certificates, certified), (verify_bounds, bounded)):
    try:
      if has_log:
        function(run, workdir)
    except MismatchError as error:
      wrong.append(str(error))
  if wrong:
    raise MismatchError('; '.join(wrong))


def verify_certificates(run, workdir):
  """Certifies logged images again, and all of them from their logged counts; says what differs.

  For every image the rule goes through the logged looks again and concludes from them class,
  radius and p_lower. Then config.verify.sample of the images, spread over the log (0: all), are
  drawn for again from the parameters, config and seed. What differs is kept in verify.json.

  Raises:
    UserError: the log is malformed, or its settings are others.
    MismatchError: it is of other parameters, or something differs.
  """
  path, record = Path(workdir) / 'certify.jsonl', Path(workdir) / 'verify.json'
  loaded = weights.load(run, workdir)
  logged, entries = log.read(path), log.read_entries(path)
  relogged.check_origin(path, logged.settings, loaded.origin)
  log.check_settings(path, logged.settings, settings(run, loaded))
  record.unlink(missing_ok=True)  # Of the last verification.
  finished = relogged.is_finished(workdir, 'certify')
  wanted = images.chosen(run, run.certify_images)
  known = {entry['idx']: entry for entry in entries}
  expected = [known[idx] for idx in wanted if idx in known]
  chosen = {entry['idx']: entry for entry in relogged.spread(expected, run.verify.sample)}
  problems, in_table = collections.defaultdict(list), _compare_table(path, finished)
  for idx, line in (*_from_counts(run.certify, run.test_data.num_classes, entries),
                    *relogged.compare_images(wanted, known, finished, section='certify_images',
                                             stage='certify', done='certified'),
                    *relogged.compare_labels(
                        run, {entry['idx']: entry['label'] for entry in expected}),
                    *_compare_draws(run, loaded.logits_fn, chosen)):
    problems[idx].append(line)
  _print(run, logged, entries, chosen, problems, in_table)
  workdirs.write_json(record, {
      'finished': workdirs.now(), 'images': len(entries), 'drawn_again': len(chosen),
      'problems': problems, 'problems_in_table': in_table,
      'environment': workdirs.environment(run.devices)})
  if problems:
    raise MismatchError(f'{path}: {len(problems)} of {len(entries)} images are not as logged')
  if in_table:
    raise MismatchError(f'{path.with_suffix(".tsv")}: {len(in_table)} of {len(entries)} images are '
                        f'not as in {path.name}')


def _compare_table(path, finished):
  """{idx: [line]} of the images whose line in the table is not the one made from the log.

  The table is made when the stage ends: until it is `finished`, lines may be missing.
  """
  table = path.with_suffix('.tsv')
  if not table.exists() and not finished:
    return {}
  log.read(table)  # Raises UserError where it is malformed.
  text = table.read_text(encoding='utf-8')
  if log.is_cut_off(table):
    text = text[:text.rfind('\n') + 1]
  made, lines = ({int(line.partition('\t')[0]): line for line in lines.splitlines()[1:]}
                 for lines in (log.export(path), text))
  problems = {idx: [f'{table.name} has another line: {lines[idx]!r}']
              for idx in made.keys() & lines.keys() if lines[idx] != made[idx]}
  problems |= {idx: [f'it is in {table.name} alone'] for idx in lines.keys() - made.keys()}
  if finished:
    problems |= {idx: [f'it is not in {table.name}'] for idx in made.keys() - lines.keys()}
  return problems


# Each of these gives (idx, line) of what is wrong.


def _compare_draws(run, logits_fn, chosen):
  """What of the entries {idx: entry} is not as it is when they are drawn for again."""
  bar = monitoring.bar(desc='verify', total=len(chosen), unit='image')
  for each in rounds(run, logits_fn, sorted(chosen)):
    if each.certificate is not None:
      for entry in log.records(each.index, each.labels, each.certificate, each.seconds):
        idx = int(entry['idx'])
        yield from ((idx, line) for line in _differences(chosen[idx], records.plain(entry)))
    bar.update(len(each.index))
  bar.close()


def _differences(entry, now):
  """What of a logged entry is not as it is when made again: a list of lines."""
  for number, (logged, new) in enumerate(zip(entry.get('looks', []), now.get('looks', [])), 1):
    if logged != new:
      return [f'look {number}: {logged[1]} hits in {logged[0]} draws are logged, {new[1]} in '
              f'{new[0]} now']
  found = [f'{name}: {entry.get(name)} is logged, {now[name]} now'
           for name in ('label', 'counts0', 'counts', 'chosen', 'draws')
           if name in now and entry.get(name) != now[name]]
  return found or [f'{name}: {entry[name]:.9g} is logged, {now[name]:.9g} now'
                   for name in ('predict', 'radius', 'p_lower')
                   if not np.isclose(entry[name], now[name], **_TOLERANCE)]


def _from_counts(rule, num_classes, entries):
  """What of each entry does not follow from its own counts."""
  sound = []
  for entry in entries:
    try:
      entry = _with_looks(rule, entry, num_classes)
      found = list(_wrong_counts(rule, entry))
    except (KeyError, TypeError, ValueError, IndexError) as error:
      found = [f'it has no counts of a certificate ({type(error).__name__}: {error})']
    yield from ((entry['idx'], line) for line in found)
    if not found:
      sound.append(entry)
  if sound:
    yield from _wrong_decisions(rule, sound)


def _with_looks(rule, entry, num_classes):
  """The entry with its class and only look, which a log of a fixed number of draws leaves out."""
  if any(len(entry[name]) != num_classes for name in ('counts0', 'counts')):
    raise ValueError(f'they are not of {num_classes} classes')
  if rule.stops_early:
    return entry
  chosen = int(np.argmax(entry['counts0']))
  return {**entry, 'chosen': chosen, 'draws': rule.n, 'looks': [[rule.n, entry['counts'][chosen]]]}


def _wrong_counts(rule, entry):
  """Lines on why the counts of an entry cannot be those of a certificate."""
  draws, hits = np.array(entry['looks']).T
  if draws.tolist() != rule.looks[:len(draws)].tolist() or draws[-1] != entry['draws']:
    yield f'its looks are after {draws.tolist()} draws, not as planned'
  new = np.diff(hits, prepend=0)
  if np.any(new < 0) or np.any(new > np.diff(draws, prepend=0)):
    yield f'its looks have {hits.tolist()} hits, which cannot be'
  if hits[-1] != entry['counts'][entry['chosen']] or sum(entry['counts']) > draws[-1]:
    yield (f'its counts {entry["counts"]} are not those of its last look, {hits[-1]} hits of class '
           f'{entry["chosen"]} in {draws[-1]} draws')
  for name in ('counts0', 'counts'):
    if min(entry[name]) < 0:
      yield f'its {name} have {min(entry[name])} votes of a class'
  if sum(entry['counts0']) > rule.num_selecting:
    yield f'its counts0 are {sum(entry["counts0"])} votes, of {rule.num_selecting} draws'
  chosen = int(np.argmax(entry['counts0'])) if rule.num_selecting else entry['label']
  if chosen != entry['chosen']:
    yield f'its class is {entry["chosen"]}; {chosen} was to be tested'


def _wrong_decisions(rule, entries):
  """What of each entry its rule would have decided otherwise."""
  state = rules.replay(rule, [entry['looks'] for entry in entries])
  counts, chosen, draws = (np.array([entry[name] for entry in entries])
                           for name in ('counts', 'chosen', 'draws'))
  certain, radius, p_lower = rule.conclude(state, rules.most_of_another(counts, chosen, draws))
  predict = np.where(certain, chosen, -1)
  # A decided image passes over later looks.
  early, late = rule.undecided(state), state.draws != draws
  for i, entry in enumerate(entries):
    if early[i] or late[i]:
      yield entry['idx'], (f'its drawing ended after {entry["draws"]} draws; the rule ends it '
                           + ('later' if early[i] else f'after {state.draws[i]}'))
    for name, value in (('predict', predict[i]), ('radius', radius[i]), ('p_lower', p_lower[i])):
      if not np.isclose(entry[name], value, **_TOLERANCE):
        yield entry['idx'], (f'{name} {entry[name]:.9g} is logged; {value:.9g} follows from its '
                             'counts')


def _print(run, logged, entries, chosen, problems, in_table):
  """Prints what was found, in lines."""
  relogged.print_problems(problems, in_table)
  now = relogged.essential(workdirs.environment(run.devices))
  others = sorted({name for before in map(relogged.essential, logged.environments) for name in now
                   if before.get(name) != now[name]})
  note = f' (the log was made with other {", ".join(others)})' if others else ''
  again = [idx for idx in chosen if idx not in problems]
  print(f'verify: {len(again)} of {len(chosen)} images drawn for again are identical: class, '
        f'counts at every look, radius, p_lower{note}; {len(entries) - len(problems)} of '
        f'{len(entries)} agree with their own counts, {len(entries) - len(in_table)} with the '
        'table', flush=True)
