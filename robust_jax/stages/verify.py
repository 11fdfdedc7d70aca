"""The verify stage: are the logged certificates those of this classifier, and of their counts?"""

from pathlib import Path

import numpy as np

from robust_jax import workdir as workdirs
from robust_jax.certification import log, rules
from robust_jax.errors import MismatchError, UserError
from robust_jax.stages import images, weights
from robust_jax.stages.certify import rounds, settings
from robust_jax.workdir import monitoring, records

# Statistics of another version of scipy may differ in their last digits.
_TOLERANCE = {'rtol': 1e-9, 'atol': 1e-12}
# Images that are read at a time for their labels.
_LABELS = 64


def verify(run, workdir):
  """Certifies logged images again, and all of them from their logged counts; says what differs.

  For every image the rule goes through the logged looks again and concludes from them class,
  radius and p_lower. Then config.verify.sample of the images, spread over the log (0: all), are
  drawn for again from the parameters, config and seed. What differs is kept in verify.json.

  Raises:
    UserError: there is no log, it is malformed, or its settings are others.
    MismatchError: the log is of other parameters, or something differs.
  """
  path = Path(workdir) / 'certify.jsonl'
  if run.certify is None or not path.exists():
    raise UserError(f'--stages=verify: {workdir} has no {path.name}; run the certify stage first')
  loaded = weights.load(run, workdir)
  logged, entries = log.read(path), log.read_entries(path)
  _check_origin(path, logged.settings, loaded.origin)
  log.check_settings(path, logged.settings, settings(run, loaded))
  record = Path(workdir) / 'verify.json'
  record.unlink(missing_ok=True)  # Of the last verification.
  finished = workdirs.stages(workdir).get('certify', {}).get('status') == 'done'
  problems, in_table = {}, _check_table(path, finished)
  for entry, found in zip(entries, _from_counts(run.certify, run.test_data.num_classes, entries)):
    _note(problems, entry, found)
  entries_of_images = _check_images(run, entries, finished, problems)
  chosen = _sample(entries_of_images, run.verify.sample)
  bar = monitoring.bar(desc='verify', total=len(chosen), unit='image')
  for each in rounds(run, loaded.logits_fn, sorted(chosen)):
    if each.certificate is not None:
      for entry in log.records(each.index, each.labels, each.certificate, each.seconds):
        _note(problems, entry, _again(chosen[entry['idx']], records.plain(entry)))
    bar.update(len(each.index))
  bar.close()
  _say(run, logged, entries, chosen, problems, in_table)
  workdirs.write_json(record, {
      'finished': workdirs.now(), 'images': len(entries), 'drawn_again': len(chosen),
      'problems': problems, 'problems_in_table': in_table,
      'environment': workdirs.environment(run.devices)})
  if problems:
    raise MismatchError(f'{path}: {len(problems)} of {len(entries)} images are not as logged')
  if in_table:
    raise MismatchError(f'{path.with_suffix(".tsv")}: {len(in_table)} of {len(entries)} images are '
                        f'not as in {path.name}')


def _check_images(run, entries, finished, problems):
  """The entries of images that were to be certified; notes the others, wrong labels, gaps."""
  wanted = images.chosen(run.test_data, run.certify_images.stride, run.certify_images.num_images)
  known = {entry['idx']: entry for entry in entries}
  for idx in known.keys() - set(wanted):
    _note(problems, known[idx], ['it is not among the images of config.certify_images'])
  missing = [idx for idx in wanted if idx not in known]
  if missing and finished:
    for idx in missing:
      problems.setdefault(idx, []).append('it is missing, and the certify stage is done')
  elif missing:
    print(f'verify: {len(missing)} of {len(wanted)} images are not certified yet')
  known = {idx: known[idx] for idx in wanted if idx in known}
  for chunk in images.batches(run.test_data, list(known), _LABELS, pad=False):
    for idx, label in zip(chunk.index.tolist(), chunk.labels.tolist()):
      if known[idx]['label'] != label:
        _note(problems, known[idx], [f'label: {known[idx]["label"]} is logged; the dataset has '
                                     f'{label}'])
  return list(known.values())


def _sample(entries, num):
  """{idx: entry} of num entries (0: all), evenly spread."""
  num = min(num or len(entries), len(entries))
  places = np.linspace(0, len(entries) - 1, num).round().astype(int)
  return {entries[i]['idx']: entries[i] for i in places}


def _check_origin(path, logged, origin):
  for name, now in origin.items():
    if logged.get(name) != now:
      raise MismatchError(f'{path}: the log is of other parameters: {name} is {now} but '
                          f'{logged.get(name)} in the log')


def _check_table(path, finished):
  """{idx: [line]} of the images whose line in the table is not the one made from the log.

  The table is made when the stage ends: until it is `finished`, lines may be missing.
  """
  table = path.with_suffix('.tsv')
  if not table.exists() and not finished:
    return {}
  log.read(table)  # Raises UserError where it is malformed.
  made, lines = _by_idx(log.export(path)), _by_idx(table.read_text(encoding='utf-8'))
  problems = {idx: [f'{table.name} has another line: {lines[idx]!r}'] for idx in made
              if lines.get(idx, made[idx]) != made[idx]}
  problems |= {idx: [f'it is in {table.name} alone'] for idx in lines.keys() - made.keys()}
  if finished:
    problems |= {idx: [f'it is not in {table.name}'] for idx in made.keys() - lines.keys()}
  return problems


def _by_idx(table):
  return {int(line.partition('\t')[0]): line for line in table.splitlines()[1:]}


def _note(problems, entry, found):
  if found:
    problems.setdefault(entry['idx'], []).extend(found)


def _from_counts(rule, num_classes, entries):
  """What of each entry does not follow from its own counts: lists of lines."""
  problems = [_wrong_counts(rule, num_classes, entry) for entry in entries]
  good = [i for i, lines in enumerate(problems) if not lines]
  if good:
    for i, lines in zip(good, _wrong_decisions(rule, [entries[i] for i in good])):
      problems[i] = lines
  return problems


def _with_looks(rule, entry):
  """The entry with its class and only look, which a log of a fixed number of draws leaves out."""
  if rule.stops_early:
    return entry
  chosen = int(np.argmax(entry['counts0']))
  return {**entry, 'chosen': chosen, 'draws': rule.n, 'looks': [[rule.n, entry['counts'][chosen]]]}


def _wrong_counts(rule, num_classes, entry):
  """Why the counts of an entry cannot be those of a certificate: a list of lines."""
  try:
    if any(len(entry[name]) != num_classes for name in ('counts0', 'counts')):
      return [f'its counts are not of {num_classes} classes']
    entry = _with_looks(rule, entry)
    draws, hits = np.array(entry['looks']).T
    problems = []
    if draws.tolist() != rule.looks[:len(draws)].tolist() or draws[-1] != entry['draws']:
      problems.append(f'its looks are after {draws.tolist()} draws, not as planned')
    new = np.diff(hits, prepend=0)
    if np.any(new < 0) or np.any(new > np.diff(draws, prepend=0)):
      problems.append(f'its looks have {hits.tolist()} hits, which cannot be')
    if hits[-1] != entry['counts'][entry['chosen']] or sum(entry['counts']) > draws[-1]:
      problems.append(f'its counts {entry["counts"]} are not those of its last look, {hits[-1]} '
                      f'hits of class {entry["chosen"]} in {draws[-1]} draws')
    problems += [f'its {name} have {min(entry[name])} votes of a class'
                 for name in ('counts0', 'counts') if min(entry[name]) < 0]
    if sum(entry['counts0']) > rule.num_selecting:
      problems.append(f'its counts0 are {sum(entry["counts0"])} votes, of {rule.num_selecting} '
                      'draws')
    chosen = int(np.argmax(entry['counts0'])) if rule.num_selecting else entry['label']
    if chosen != entry['chosen']:
      problems.append(f'its class is {entry["chosen"]}; {chosen} was to be tested')
  except (KeyError, TypeError, ValueError, IndexError) as error:
    return [f'it has no counts of a certificate ({type(error).__name__}: {error})']
  return problems


def _wrong_decisions(rule, entries):
  """What of each entry its rule would have decided otherwise: lists of lines."""
  entries = [_with_looks(rule, entry) for entry in entries]
  state = rules.replay(rule, [entry['looks'] for entry in entries])
  counts, chosen, draws = (np.array([entry[name] for entry in entries])
                           for name in ('counts', 'chosen', 'draws'))
  certain, radius, p_lower = rule.conclude(state, rules.most_of_another(counts, chosen, draws))
  # A decided image passes over later looks.
  early, late = rule.undecided(state), state.draws != draws
  for i, entry in enumerate(entries):
    ended = [f'its drawing ended after {entry["draws"]} draws; the rule ends it '
             + ('later' if early[i] else f'after {state.draws[i]}')] if early[i] | late[i] else []
    prediction = entry['chosen'] if certain[i] else -1
    yield ended + _decisions(entry, prediction, radius[i], p_lower[i])


def _decisions(entry, prediction, radius, p_lower):
  found = []
  for name, value in (('predict', prediction), ('radius', radius), ('p_lower', p_lower)):
    if not np.isclose(entry[name], value, **_TOLERANCE):
      found.append(f'{name} {entry[name]:.9g} is logged; {value:.9g} follows from its counts')
  return found


def _again(entry, now):
  """What of a logged entry is not as it is when made again: a list of lines."""
  looks = list(zip(entry.get('looks', []), now.get('looks', [])))
  for number, (logged, new) in enumerate(looks, 1):
    if logged != new:
      return [f'look {number}: {logged[1]} hits in {logged[0]} draws are logged, {new[1]} in '
              f'{new[0]} now']
  found = [f'{name}: {entry.get(name)} is logged, {now[name]} now'
           for name in ('label', 'counts0', 'counts', 'chosen', 'draws')
           if name in now and entry.get(name) != now[name]]
  return found or [f'{name}: {entry[name]:.9g} is logged, {now[name]:.9g} now'
                   for name in ('predict', 'radius', 'p_lower')
                   if not np.isclose(entry[name], now[name], **_TOLERANCE)]


def _say(run, logged, entries, chosen, problems, in_table, most=20):
  """Prints what was found, in lines."""
  lines = [f'image {idx}: {text}' for each in (problems, in_table)
           for idx, found in sorted(each.items()) for text in dict.fromkeys(found)]
  print(*lines[:most], sep='\n', end='\n' if lines else '')
  if len(lines) > most:
    print(f'and {len(lines) - most} lines more')
  now = records.plain(workdirs.environment(run.devices))
  others = sorted({name for logged_by in logged.environments for name in now
                   if _essential(name, logged_by.get(name)) != _essential(name, now[name])})
  note = f' (the log was made with other {", ".join(others)})' if others else ''
  again = [idx for idx in chosen if idx not in problems]
  print(f'verify: {len(again)} of {len(chosen)} images drawn for again are identical: class, '
        f'counts at every look, radius, p_lower{note}; {len(entries) - len(problems)} of '
        f'{len(entries)} agree with their own counts, {len(entries) - len(in_table)} with the '
        'table', flush=True)


def _essential(name, value):
  """An entry of the environment; of compiler flags, those that may change a result."""
  if name != 'flags' or value is None:
    return value
  return [flag for flag in value.split() if 'device_count' not in flag]
