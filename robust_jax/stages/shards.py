"""The images of a run in N parts, which any N processes take on: `--shard=I/N`, then `merge`.

Part I has every N-th of the images, as images of other difficulty lie in runs, and a folder of its
own, WORKDIR/shards/I-of-N: a workdir whose training is that of WORKDIR.
"""

import re
from pathlib import Path

from robust_jax import attacks
from robust_jax import workdir as workdirs
from robust_jax.certification import log as certify_log
from robust_jax.config import sections
from robust_jax.errors import UserError
from robust_jax.workdir import records

# The stages that can be shared out, in their order.
STAGES = ('attack', 'certify', 'sandwich')


def folder(workdir, shard):
  """The workdir of a shard (I, N)."""
  return Path(workdir) / 'shards' / '{}-of-{}'.format(*shard)


def begin(workdir, shard, config, wanted):
  """Makes the folder of a shard ready, which the caller has locked: links the training to it.

  Raises:
    UserError: the training of the workdir had another config, or a stage cannot be shared out.
  """
  if 'attack' in wanted and config['attack']['name'] in attacks.SUITES:
    raise UserError(f'--shard: config.attack.name is {config["attack"]["name"]!r}, which goes from '
                    'part to part on all images; leave the attack stage to one process')
  own, trained = folder(workdir, shard), workdirs.stages(workdir).get('train')
  if trained is None:
    return
  if changed := sections.changed_fields(trained['config'], config, 'train'):
    raise UserError(f'{workdir}: the train stage ran with another config ({"; ".join(changed)})')
  if not (own / 'checkpoints').exists():
    (own / 'checkpoints').symlink_to('../../checkpoints', target_is_directory=True)
  workdirs.write_json(own / 'stages.json', {**workdirs.stages(own), 'train': trained})


def merge(workdir) -> list[str]:
  """Joins what the shards of a workdir have found to its own logs; returns a line for each.

  The logs are as of one process but for the order of their lines, which is that of the images, and
  their times.

  Raises:
    UserError: a shard is missing, unfinished, of another number, config or classifier than the
      first, or has an image of another one's; or the workdir has such a log of its own.
  """
  workdir = Path(workdir)
  folders = _folders(workdir)
  with workdirs.locked(workdir):
    begun = [stage for stage in STAGES if any((one / f'{stage}.jsonl').exists() for one in folders)]
    if not begun:
      raise UserError(f'{workdir}/shards: no shard has a result yet')
    found = {stage: _join(stage, workdir, folders) for stage in begun}
    for name in ('config.json', 'run.json'):
      if (folders[0] / name).exists():
        workdirs.write_json(workdir / name, workdirs.read_json(folders[0] / name))
    (workdir / 'report.html').unlink(missing_ok=True)
    for stage, (lines, record) in found.items():
      path = workdir / f'{stage}.jsonl'
      path.unlink(missing_ok=True)
      records.append(path, *lines)
      if stage == 'certify':
        workdirs.write_bytes(path.with_suffix('.tsv'), certify_log.export(path).encode())
      gallery = folders[0] / 'gallery.npz'
      if stage == 'attack' and gallery.exists():
        workdirs.write_bytes(workdir / gallery.name, gallery.read_bytes())
      workdirs.write_json(workdir / 'stages.json', {**workdirs.stages(workdir), stage: record})
  return [f'{workdir}/{stage}.jsonl: {sum("idx" in line for line in lines):,} images of '
          f'{len(folders)} shards' for stage, (lines, _) in found.items()]


def _folders(workdir):
  """The folders of all shards, in order."""
  there = {}
  for path in (workdir / 'shards').glob('*-of-*'):
    if match := re.fullmatch(r'(\d+)-of-(\d+)', path.name):
      there[tuple(map(int, match.groups()))] = path
  totals = sorted({total for _, total in there})
  if len(totals) != 1:
    of = ' and of '.join(map(str, totals))
    raise UserError(f'{workdir}/shards must hold the shards of one number, got those of {of}'
                    if totals else f'{workdir} has no shards, which --shard=I/N makes')
  missing = [f'{number}/{totals[0]}' for number in range(totals[0])
             if (number, totals[0]) not in there]
  if missing:
    raise UserError(f'{workdir}/shards lacks the shards {", ".join(missing)}')
  return [there[key] for key in sorted(there)]


def _join(stage, workdir, folders):
  """(the lines of the whole log, the record of the stage) of what the shards have found."""
  name, kept = f'{stage}.jsonl', [workdirs.stages(one).get(stage, {}) for one in folders]
  for one, record in zip(folders, kept):
    if record.get('status') != 'done':
      raise UserError(f'{one}: the {stage} stage is not finished; the same --shard goes on')
    if changed := sections.changed_fields(kept[0]['config'], record['config'], stage):
      raise UserError(f'{one}: the {stage} stage ran with another config than in '
                      f'{folders[0].name} ({"; ".join(changed)})')
  if stage in workdirs.results(workdir):
    raise UserError(f'{workdir} has a {name} of its own; move it away to put that of the shards in '
                    'its place')
  chosen = kept[0]['config']['evaluation' if stage == 'attack' else 'certify_images']
  return _lines([one / name for one in folders], chosen['stride']), _record(kept)


def _lines(paths, stride):
  """The lines of the logs in one, by images; those of another environment apart, as in any log."""
  first, by_environment, owner = None, {}, {}
  for path in paths:
    (header, *entries), shard = records.read(path), path.parent.name
    header = header['header']
    first = first or header
    records.check_same(path, first.get('settings', first), header.get('settings', header))
    environment = header.get('environment')
    for entry in entries:
      if 'environment' in entry:
        environment = entry['environment']
        continue
      if entry['idx'] in owner:
        raise UserError(f'{path}: image {entry["idx"]} is in {owner[entry["idx"]]} too')
      owner[entry['idx']] = shard
      by_environment.setdefault(repr(environment), (environment, []))[1].append(entry)
  absent = sorted({*range(0, stride * len(owner), stride)} - owner.keys())
  if absent:
    raise UserError(f'{paths[0].parents[1]}: no {paths[0].name} has image {absent[0]}')
  lines = [{'header': first}]
  for environment, entries in by_environment.values():
    if len(by_environment) > 1:
      lines.append({'environment': environment})
    lines += sorted(entries, key=lambda entry: entry['idx'])
  return lines


def _record(kept):
  """The record of a stage that was done in parts."""
  record = {**kept[0], 'seconds': sum(one['seconds'] for one in kept),
            'started': min(one['started'] for one in kept),
            'finished': max(one['finished'] for one in kept), 'shards': len(kept)}
  if networks := [one['network'] for one in kept if 'network' in one]:
    total = sum(one['num_images'] for one in networks)
    record['network'] = {'num_images': total, 'accuracy': sum(
        one['accuracy'] * one['num_images'] for one in networks) / max(total, 1)}
  return record
