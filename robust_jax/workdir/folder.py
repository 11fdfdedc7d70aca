"""The folder of a run: which stages are done, with which config, and what else is written there.

config.json       the resolved config
run.json          command, versions, devices, dataset, model
stages.json       for each stage its status, times and the config it ran with
metrics.jsonl     training, one JSON object a line
radii.npz         of a training that learns them: the radius of each training example
checkpoints/      see `checkpoint`; damaged/ has those whose files are not as they were saved
tensorboard/      and profile/, where they were asked for
attack.jsonl      the attack stage, one line an image; gallery.npz has some of its images
                  AutoAttack: attack.progress.jsonl, a line a batch, and robustbench.json
certify.jsonl     certificates, one line an image; certify.progress.json has unfinished ones
certify.tsv       the table made from certify.jsonl when the stage ends
sandwich.jsonl    how far each certified image is from a confirmed adversarial example
bound.jsonl       deterministic bounds, a line an image and radius
verify.json       what the last verification found of certificates, verify_bound.json of bounds
check.json        what the last examination of attacks found
report.html       and tables/, figures/
attack_image/     of each image file that was attacked a page, the images and the figures
export/           model.onnx, vnnlib/ and instances.csv, for other verifiers
shards/           I-of-N/ a workdir each, of --shard=I/N
jobs/             of --submit: logs, and which jobs there were
previous/         results that `--redo` has moved away
"""

import contextlib
import datetime
import errno
import fcntl
import hashlib
import importlib.metadata
import itertools
import os
import platform
import shlex
import shutil
from pathlib import Path

import jax
import numpy as np

from robust_jax import __version__, models, named
from robust_jax.devices import processes
from robust_jax.errors import TrainingError, UserError
from robust_jax.workdir.records import read_json, write_json

LOCK = '.lock'
# The status of a stage whose results are being moved to previous/.
REDO = 'redo'
# That of a training which a loss that is not finite has ended.
STOPPED = 'stopped'
OUTPUTS = {
    'train': ('checkpoints', 'damaged', 'metrics.jsonl', 'radii.npz', 'tensorboard'),
    'attack': ('attack.jsonl', 'attack.progress.jsonl', 'gallery.npz', 'robustbench.json',
               'check.json'),
    'certify': ('certify.jsonl', 'certify.tsv', 'certify.progress.json', 'verify.json'),
    'sandwich': ('sandwich.jsonl',),
    'bound': ('bound.jsonl', 'verify_bound.json'),
}
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'tensorflow-datasets',
             'numpy', 'scipy')


def results(workdir):
  """The records of the stages that have results in a workdir: {stage: record}.

  One without outputs ended before it had any result.
  """
  return {stage: record for stage, record in stages(workdir).items()
          if any((Path(workdir) / name).exists() for name in OUTPUTS[stage])}


def certify_beside(workdir):
  """The flags by which a command certifies the network of a workdir, in another workdir."""
  return f'--config.weights={workdir} --stages=certify,report --workdir=OTHER'


def check_empty_or_run(workdir):
  """Raises UserError where a folder holds something else than a run."""
  names = [path.name for path in Path(workdir).iterdir()
           if path.name not in (LOCK, 'shards', 'jobs') and path.suffix != '.new']
  if names and 'config.json' not in names:
    raise UserError(f'--workdir must be a new or empty folder, or one that this launcher made, got '
                    f'{workdir}, which holds {min(names)} but no config.json')


@contextlib.contextmanager
def locked(workdir):
  """A context in which no other process runs stages in the folder, which is made if missing.

  The system gives the lock back when the process ends, however it does.

  Raises:
    UserError: another one does, or the folder cannot be written, or it has no room any more.
  """
  path = Path(workdir) / LOCK
  made = not path.parent.exists()
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, 'a+', encoding='utf-8')  # noqa: SIM115 - closed below
  except OSError as error:
    raise UserError(f'--workdir must be a folder that can be written, got {workdir} '
                    f'({error.strerror})') from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      file.seek(0)
      raise UserError(f'--workdir is {workdir}, which is in use ({file.read().strip()}); wait for '
                      'that run, or take another folder') from error
    try:
      file.truncate(0)
      file.write(f'process {os.getpid()} on {platform.node()} since {now()}\n')
      file.flush()
      os.fsync(file.fileno())  # Other processes look for it.
      yield
    except OSError as error:
      if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise
      raise UserError(f'--workdir is {workdir}, where there is no room left ({error.strerror}); '
                      'what was written is whole, and the same command goes on') from error
    finally:
      if made and [entry.name for entry in path.parent.iterdir()] == [LOCK]:
        path.unlink()  # A mistake leaves no folder behind.
        path.parent.rmdir()


def in_use(workdir):
  """Whether a process runs stages in the folder."""
  path = Path(workdir) / LOCK
  if not path.exists():
    return False
  with open(path, encoding='utf-8') as file:  # Whoever looks may not be allowed to write.
    try:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
      return True
  return False


def share(workdir):
  """Lets the other processes copy the workdir, which this one has locked, and waits for them."""
  if processes.count() > 1:
    processes.tell('workdir', [(Path(workdir) / LOCK).read_text(encoding='utf-8'), _sums(workdir)])
    processes.barrier('workdir')


@contextlib.contextmanager
def copied(workdir):
  """A context with a folder that begins as the workdir is, for a process that is not the first.

  It has copies of the files, which the stages go on with as the first process does, and is deleted
  at the end. The checkpoints are those of the workdir, where the first process alone writes.

  Raises:
    UserError: the workdir is not the folder that the first process has.
  """
  (holder, sums), path = processes.hear('workdir'), Path(workdir)

  def differs():
    try:
      own = _sums(path)
      wrong = [name for name in sums | own if own.get(name) != sums.get(name)]
      return wrong or (path / LOCK).read_text(encoding='utf-8') != holder and [LOCK]
    except OSError:
      return [LOCK]

  if wrong := processes.lasting(differs):
    raise UserError(f'--workdir must be one folder that all processes see, got {workdir}, whose '
                    f'{wrong[0]} on {platform.node()} is another one than that of process 0 '
                    f'({holder.strip()})')
  with processes.temporary_folder() as copy:
    for name in sums:
      shutil.copy(path / name, copy)
    (copy / 'checkpoints').symlink_to(path.resolve() / 'checkpoints')
    processes.barrier('workdir')
    try:
      yield copy
    except (UserError, TrainingError) as error:  # Nobody knows the copy.
      raise type(error)(str(error).replace(str(copy), str(workdir))) from error


def _sums(workdir):
  """{name: sha256} of the files that stages write and read."""
  found = {}
  for name in ('config.json', 'run.json', 'stages.json',
               *itertools.chain.from_iterable(OUTPUTS.values())):
    if (path := Path(workdir) / name).is_file():
      with path.open('rb') as file:
        found[name] = hashlib.file_digest(file, 'sha256').hexdigest()
  return found


def describe(run, workdir, words):
  """Writes config.json, and run.json on the training that the workdir holds, or will hold.

  The command of run.json has the `words` that the launcher was given. config.verify, check,
  label, attack_image and export, which are of one call, are written as their defaults.
  """
  write_json(Path(workdir) / 'config.json',
             run.config | {name: type(getattr(run, name))()._asdict()
                           for name in ('verify', 'check', 'label', 'attack_image', 'export')})
  if 'train' in stages(workdir):
    return
  dataset, devices = run.test_data, run.devices
  params = models.shapes(run.model, dataset.image_shape)['params']
  write_json(Path(workdir) / 'run.json', {
      'command': shlex.join(['python', '-m', 'launch', *words]), 'started': now(),
      'num_devices': len(devices),
      'num_processes': processes.count(),
      'dataset': {'name': run.data.name, 'split': dataset.split, 'num_classes': dataset.num_classes,
                  'class_names': list(dataset.class_names),
                  'image_shape': list(dataset.image_shape), 'data': run.data.reading,
                  'mean': np.asarray(dataset.mean).tolist(),
                  'std': np.asarray(dataset.std).tolist()},
      'weights': run.config['weights'] and str(
          named.file(run.config['weights'], 'config.weights').resolve()),
      'model': {'name': run.config['model']['name'],
                'num_params': sum(x.size for x in jax.tree.leaves(params))},
      **environment(devices)})


def versions():
  """{package: version} of this project, Python, and what results may depend on."""
  return {'robust_jax': __version__, 'python': platform.python_version(),
          **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def environment(devices):
  """What may change the last bits of a result: versions, platform, devices, compiler flags."""
  return {
      'versions': versions(),
      'platform': f'{platform.system()} {platform.machine()}, {os.cpu_count()} cores',
      'device': devices[0].device_kind,
      'flags': os.environ.get('XLA_FLAGS', ''),
      'matmul_precision': str(jax.config.jax_default_matmul_precision),
  }


def stages(workdir):
  """{stage: {'status', 'started', 'finished', 'seconds', 'config'}} of the stages begun."""
  path = Path(workdir) / 'stages.json'
  return read_json(path) if path.exists() else {}


def begin(workdir, stage, run, *, again=False):
  """Records that a stage of a Run runs; returns False where it is done, unless `again`."""
  record = stages(workdir).get(stage)
  if record and record['status'] == 'done' and not again:
    return False
  # The report would not cover what comes now.
  (Path(workdir) / 'report.html').unlink(missing_ok=True)
  spent = record['seconds'] if record else 0.
  _record(workdir, stage, {'status': 'running', 'started': now(), 'seconds': spent,
                           'device': run.devices[0].device_kind, 'num_devices': len(run.devices),
                           'config': run.config})
  return True


def add_time(workdir, stage, seconds, facts):
  """Adds to the time that a stage has taken, and records whether it is done.

  `facts`: dict to keep about the finished stage, a status other than 'done' among them; None where
  it did not finish.
  """
  record = stages(workdir)[stage]
  record['seconds'] += seconds
  if facts is not None:
    record |= {'status': 'done', 'finished': now(), **facts}
  _record(workdir, stage, record)


def set_aside(workdir, redo):
  """Moves the results of stages, and the report, to previous/, so that these stages run again.

  Where a call was interrupted, the next one moves the rest, whatever stages are given to it.
  """
  workdir = Path(workdir)
  records = stages(workdir)
  redone = {stage: {**record, 'status': REDO} for stage, record in records.items()
            if stage in redo or record['status'] == REDO}
  if not redone:
    return
  write_json(workdir / 'stages.json', records | redone)
  folder = workdir / 'previous' / datetime.datetime.now().strftime('%Y%m%d-%H%M%S-%f')
  folder.mkdir(parents=True)
  write_json(folder / 'stages.json', redone)
  for name in (*itertools.chain.from_iterable(OUTPUTS[stage] for stage in redone), 'report.html',
               'tables', 'figures'):
    if (workdir / name).exists():
      shutil.move(workdir / name, folder / name)
  write_json(workdir / 'stages.json',
             {stage: record for stage, record in records.items() if stage not in redone})


def now():
  """The time, ISO 8601, UTC, whole seconds."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def _record(workdir, stage, record):
  write_json(Path(workdir) / 'stages.json', {**stages(workdir), stage: record})
