"""The images of a run in N parts, which any N processes take on: `--shard=I/N`, then `merge`.

Part I has every N-th of the images, as images of other difficulty lie in runs, and a folder of its
own, WORKDIR/shards/I-of-N: a workdir whose training is that of WORKDIR.
"""

import dataclasses
import re
from pathlib import Path

from robust_jax import analysis, attacks
from robust_jax import workdir as workdirs
from robust_jax.certification import log as certify_log
from robust_jax.config import sections
from robust_jax.errors import UserError
from robust_jax.workdir import records

# The stages that can be shared out, in their order, and what reads and checks the log of each.
STAGES = {'attack': analysis.read_attack, 'certify': certify_log.read,
          'sandwich': analysis.read_sandwich, 'bound': analysis.read_bound}


def folder(workdir, shard):
  """The workdir of a shard (I, N)."""
  return Path(workdir) / 'shards' / '{}-of-{}'.format(*shard)


def of(workdir):
  """The shard (I, N) that a workdir is of by its name, or None."""
  match = re.fullmatch(r'shards/(\d+)-of-(\d+)', '/'.join(Path(workdir).absolute().parts[-2:]))
  return tuple(map(int, match.groups())) if match else None


def part(run, workdir):
  """The Run of the images that a workdir is for: of a shard's those of the shard."""
  return dataclasses.replace(run, shard=of(workdir) or run.shard)


def check(workdir, shard, config, wanted):
  """The folder of a shard, which is not made yet.

  Raises:
    UserError: the training of the workdir is not there, not finished, of another config, or another
      one than a shard has begun with; or a stage cannot be shared out.
  """
  trained, own = _training(workdir), folder(workdir, shard)
  if 'attack' in wanted and config['attack']['name'] in attacks.SUITES:
    raise UserError(f'--shard: config.attack.name is {config["attack"]["name"]!r}, which goes from '
                    'part to part on all images; leave the attack stage to one process')
  if trained is None and config['weights'] is None and config['model']['name'] != 'external':
    raise UserError(f'--shard: {workdir} has no training, and config.weights is None')
  if trained is not None and trained['status'] != 'done':
    raise UserError(f'--shard: the training of {workdir} is not finished')
  if trained and (changed := sections.changed_fields(trained['config'], config, 'train')):
    raise UserError(f'{workdir}: the train stage ran with another config ({"; ".join(changed)})')
  _check_training(own, trained)
  return own


def begin(own, config):
  """Makes the folder of a shard ready, which the caller has locked; of any other does nothing.

  The training of the workdir is linked to it.
  """
  if of(own) is None:
    return
  own, workdir = Path(own), Path(own).absolute().parents[1]
  trained = _training(workdir)
  _check_training(own, trained)
  if not (own / 'config.json').exists():
    workdirs.write_json(own / 'config.json', config)
  if trained is None:
    return
  link = own / 'checkpoints'
  if (workdir / link.name).exists() and not link.is_symlink():
    link.symlink_to(f'../../{link.name}', target_is_directory=True)
  workdirs.write_json(own / 'stages.json', {**workdirs.stages(own), 'train': trained})


def merge(workdir) -> list[str]:
  """Joins what the shards of a workdir have found to its own logs; returns a line for each.

  The logs are as of one process but for the order of their lines, which is that of the images
  among those of one environment, and their times. What an earlier merge wrote is written anew.

  Raises:
    UserError: a shard is missing, unfinished, or of another number, config, training or classifier
      than the others, or has an image of another one's; or the workdir has results of its own.
  """
  workdir = Path(workdir)
  folders = _folders(workdir)
  with workdirs.locked(workdir):
    begun = [stage for stage in STAGES if any((one / f'{stage}.jsonl').exists() for one in folders)]
    if not begun:
      raise UserError(f'{workdir}/shards: no shard has a result yet')
    for one in folders:
      _check_training(one, _training(workdir))
    config = workdirs.read_json(folders[0] / 'config.json')
    merged = [stage for stage in begun if 'shards' in workdirs.stages(workdir).get(stage, {})]
    sections.check_workdir(workdir, config, merged)
    found = {stage: _join(stage, workdir, folders) for stage in begun}
    workdirs.write_json(workdir / 'config.json', config)
    if (folders[0] / 'run.json').exists():
      workdirs.write_json(workdir / 'run.json', workdirs.read_json(folders[0] / 'run.json'))
    (workdir / 'report.html').unlink(missing_ok=True)
    for stage, (lines, record) in found.items():
      # First, so that a merge that was interrupted is known as one.
      workdirs.write_json(workdir / 'stages.json', {**workdirs.stages(workdir), stage: record})
      path = workdir / f'{stage}.jsonl'
      workdirs.write_bytes(path, ''.join(map(records.line, lines)).encode())
      if stage == 'certify':
        workdirs.write_bytes(path.with_suffix('.tsv'), certify_log.export(path).encode())
      gallery = folders[0] / 'gallery.npz'
      if stage == 'attack' and gallery.exists():
        workdirs.write_bytes(workdir / gallery.name, gallery.read_bytes())
  return [f'{workdir}/{stage}.jsonl: {record["num_images"]:,} images of {len(folders)} shards'
          for stage, (_, record) in found.items()]


def _training(workdir):
  return workdirs.stages(workdir).get('train')


def _check_training(own, trained):
  """Raises UserError where a shard that has begun is of another training."""
  if workdirs.stages(own) and _training(own) != trained:
    raise UserError(f'{own} is of another training than {own.parents[1]} has now; move it away')


def _folders(workdir):
  """The folders of all shards, in order."""
  there = {of(path): path for path in (workdir / 'shards').glob('*') if of(path)}
  totals = sorted({total for _, total in there})
  if len(totals) != 1:
    numbers = ' and of '.join(map(str, totals))
    raise UserError(f'{workdir}/shards must hold the shards of one number, got those of {numbers}'
                    if totals else f'{workdir} has no shards, which --shard=I/N makes')
  missing = [f'{number}/{totals[0]}' for number in range(totals[0])
             if (number, totals[0]) not in there]
  if missing:
    raise UserError(f'{workdir}/shards lacks the shards {", ".join(missing)}')
  return [there[key] for key in sorted(there)]


def _join(stage, workdir, folders):
  """(the lines of the whole log, the record of the stage) of what the shards have found."""
  kept = [workdirs.stages(one).get(stage, {}) for one in folders]
  for one, record in zip(folders, kept):
    if record.get('status') != 'done':
      raise UserError(f'{one}: the {stage} stage is not finished; the same --shard goes on')
    if changed := sections.changed_fields(kept[0]['config'], record['config'], stage):
      raise UserError(f'{one}: the {stage} stage ran with another config than in '
                      f'{folders[0].name} ({"; ".join(changed)})')
  own = [name for name in workdirs.OUTPUTS[stage] if (workdir / name).exists()]
  if own and 'shards' not in workdirs.stages(workdir).get(stage, {}):
    raise UserError(f'{workdir} has {", ".join(own)} of its own; move what it has away to put that '
                    'of the shards in its place')
  return _lines(stage, folders, kept), _record(kept)


def _lines(stage, folders, kept):
  """The lines of the logs in one, by images; those of another environment apart, as in any log."""
  first, by_environment, owner = None, {}, {}
  for one, record in zip(folders, kept):
    path = one / f'{stage}.jsonl'
    whole = STAGES[stage](path)
    lines = records.read(path)
    header = lines[0]['header'] if lines else {}
    first = first or header
    records.check_same(path, first.get('settings', first), header.get('settings', header))
    environment = header.get('environment')
    for entry in lines[1:]:
      environment = entry.get('environment', environment)
      if 'idx' in entry:
        if owner.setdefault(entry['idx'], one.name) != one.name:
          raise UserError(f'{path}: image {entry["idx"]} is in {owner[entry["idx"]]} too')
        by_environment.setdefault(repr(environment), (environment, []))[1].append(entry)
    if len(whole.idx) != record['num_images']:
      raise UserError(f'{path} must have {record["num_images"]} images, got {len(whole.idx)}')
  joined, written = [{'header': first}], first.get('environment')
  for environment, entries in by_environment.values():
    if environment != written:
      joined.append({'environment': environment})
    joined += sorted(entries, key=lambda entry: entry['idx'])
    written = environment
  return joined


def _record(kept):
  """The record of a stage that was done in parts."""
  record = {**kept[0], 'shards': len(kept),
            **{name: sum(one[name] for one in kept) for name in ('seconds', 'num_images')},
            'started': min(one['started'] for one in kept),
            'finished': max(one['finished'] for one in kept)}
  if networks := [one['network'] for one in kept if one.get('network')]:
    total = sum(one['num_images'] for one in networks)
    record['network'] = {'num_images': total, 'accuracy': sum(
        one['accuracy'] * one['num_images'] for one in networks) / total}
  return record
