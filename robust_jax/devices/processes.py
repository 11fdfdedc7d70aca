"""Several processes that compute as one run, on one machine or many: what they tell each other.

Every process runs the same program on the same numbers; `parallel` shares the rows out. Process 0
alone has the workdir and says what happens. Messages go through the store of jax's coordination
service, which process 0 has: none of them takes part in a computation, so that they come through
where one is stuck. In a single process nothing here does anything.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax
from jax._src.distributed import global_state  # The store: no public module of jax has it.

from robust_jax.errors import TRY_AGAIN, NotMetError, UserError

# In seconds.
_MEETING = 120  # Until the processes have met.
_PATIENCE = 5  # Until it is said that others are waited for.
HEARTBEAT = 15  # Until a process that gives no sign of life is taken for dead.
_LOOK = 0.5  # Between looks at what the others tell.
_LAST = 3  # That process 0, who has the store, leaves the others.
_SHOWING = 90  # Until a file of another machine shows; NFS may keep a folder's names for 60.
# Of a message: the longest wait, since others may compile before they come to it.
_WAIT_MS = 3_600_000


class Meeting(NamedTuple):
  """How the processes of a run find each other; see `begin`."""

  coordinator: str | None
  num_processes: int | None
  process_id: int | None
  step_timeout: int


class _Watch:
  """What the thread of this process that looks after the others knows."""

  def __init__(self):
    self.phase = 'begin'
    self.stderr = None
    self.step_timeout, self.steps = 0, 0
    self.is_watched, self.last, self.held = False, None, 0.
    self.folder = None
    self.stopped = threading.Event()


_watch = _Watch()


def index():
  """The number of this process, from 0 on."""
  return global_state.process_id if global_state.client else 0


def count():
  """How many processes there are."""
  return global_state.num_processes if global_state.client else 1


def begin(meeting: Meeting):
  """Meets the other processes; from now on this one ends, with a line, where another one does.

  Before anything is computed. All but process 0 print nothing any more but why they end.

  Args:
    meeting: with a coordinator HOST:PORT, on the machine of process 0, the number of processes and
      of this one; without, what jax.distributed finds by itself on TPU pods, SLURM, Open MPI and
      Kubernetes. step_timeout: seconds after which a process is stuck (`watched`); 0: never.

  Raises:
    NotMetError: not all of them have come in time.
    UserError: there is nothing by which they could meet.
  """
  _watch.stderr, _watch.step_timeout = sys.stderr, meeting.step_timeout
  _end_on_abort()
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # Its thread would take SIGTERM from this process.
  jax.config.update('jax_enable_preemption_service', False)
  at = (f'--coordinator is {meeting.coordinator}' if meeting.coordinator else
        '--distributed is given')
  waits = threading.Timer(_PATIENCE, lambda: _say(
      f'waiting for the other processes ({at}), for {_MEETING} s at most'))
  waits.daemon = True
  waits.start()
  # A handler of Python's would be called when they have met.
  handlers = {number: signal.signal(number, signal.SIG_DFL)
              for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    if meeting.coordinator and meeting.process_id:
      _reach(meeting.coordinator, at)
    jax.distributed.initialize(
        meeting.coordinator, meeting.num_processes, meeting.process_id,
        cluster_detection_method='deactivate' if meeting.coordinator else None,
        initialization_timeout=_MEETING, heartbeat_timeout_seconds=HEARTBEAT)
  except NotMetError:
    raise
  except Exception as error:  # Of jax's many clusters: any of many.
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    if not meeting.coordinator and 'should be defined' in reason or 'must be defined' in reason:
      reason = ('this is no TPU pod, SLURM, Open MPI or Kubernetes job that jax.distributed knows: '
                'give --coordinator, --num_processes and --process_id')
    if 'DEADLINE' in reason or 'UNAVAILABLE' in reason:
      raise NotMetError(f'{at}: the processes have not met within {_MEETING} s') from error
    raise UserError(f'{at}: {reason}') from error
  finally:
    waits.cancel()
    for number, handler in handlers.items():
      signal.signal(number, handler)
  _watch.phase = 'run'
  if index():
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 - as long as the program
    sys.stderr = sys.stdout
  threading.Thread(target=_look_after_others, daemon=True).start()


def _reach(coordinator, at):
  """Waits until process 0 listens: jax, which would end by SIGABRT, knows no host's name."""
  host, _, port = coordinator.rpartition(':')
  deadline = time.monotonic() + _MEETING
  while True:
    try:
      socket.create_connection((host.strip('[]'), int(port)), timeout=_PATIENCE).close()
    except OSError as error:  # Its name may not be known yet, either.
      if time.monotonic() > deadline:
        raise NotMetError(f'{at}: nobody answers there within {_MEETING} s '
                          f'({error.strerror or error})') from error
      time.sleep(_LOOK)
    else:
      return


def name():
  """This process in words."""
  return f'process {index()} of {count()}'


def exchange(topic, value):
  """The values that all processes give, JSON, in their order; each topic once in a run."""
  if count() == 1:
    return [value]
  tell(f'{topic}/{index()}', value)
  return [hear(f'{topic}/{number}') for number in range(count())]


def tell(topic, value):
  """Says something to those who `hear` it."""
  global_state.client.key_value_set(f'robust_jax/{topic}', json.dumps(value))


def hear(topic):
  """What was told, once it is."""
  return json.loads(global_state.client.blocking_key_value_get(f'robust_jax/{topic}', _WAIT_MS))


def of_first(topic, find):
  """find(), JSON, as it is in process 0, which alone calls it; each topic once in a run."""
  if count() == 1:
    return find()
  if index() == 0:
    tell(topic, find())
  return hear(topic)


def lasting(find_wrong):
  """What find_wrong() has to say of files: in other processes than the first, what does not pass.

  They may be of another machine, and show late.
  """
  deadline = time.monotonic() + _SHOWING
  while (wrong := find_wrong()) and index() and time.monotonic() < deadline:
    time.sleep(0.5)
  return wrong


def post(topic, value):
  """Says something in place of what this process has said before; nobody waits for it."""
  if count() > 1:
    global_state.client.key_value_set(f'robust_jax/{topic}/{index()}', json.dumps(value),
                                      allow_overwrite=True)


def posted(topic):
  """{process: what it has said last} of those that have."""
  if count() == 1:
    return {}
  return {int(key.rpartition('/')[2]): json.loads(value)
          for key, value in global_state.client.key_value_dir_get(f'robust_jax/{topic}/')}


def barrier(topic):
  """Waits until all processes are here; each topic once in a run."""
  if count() > 1:
    global_state.client.wait_at_barrier(f'robust_jax/{topic}', _WAIT_MS)


def check_same(topic, value, describe):
  """Raises UserError, in all processes the same one, unless all have the same value.

  Args:
    topic: once in a run.
    value: JSON.
    describe: (number of another process, value of 0, its value) -> the message.
  """
  values = exchange(topic, value)
  for number, other in enumerate(values):
    if other != values[0]:
      raise UserError(describe(number, values[0], other))


@contextlib.contextmanager
def watched():
  """A context in which this process is stuck where no `alive` follows the last for step_timeout."""
  _watch.is_watched = True
  try:
    yield
  finally:
    _watch.is_watched, _watch.last = False, None


def alive():
  """Notes that this process gets on. The first one is to come when what follows is compiled."""
  if _watch.is_watched:
    _watch.last, _watch.steps = time.monotonic(), _watch.steps + 1


@contextlib.contextmanager
def unhurried():
  """A context in which no process is stuck, because this one writes what may take long."""
  post('writes', True)
  try:
    yield
  finally:
    post('writes', False)


@contextlib.contextmanager
def temporary_folder():
  """A context with a new folder, deleted however this process ends, unless the system ends it."""
  with tempfile.TemporaryDirectory(prefix='robust_jax-') as folder:
    _watch.folder = folder
    yield Path(folder)


def end(status, message):
  """Ends this process, and by a note the others, with an exit status; does not return.

  At once, as threads that still read or compute can crash the interpreter while it takes leave.
  """
  _watch.stopped.set()
  with contextlib.suppress(Exception):  # Who has the store may be gone.
    if status:
      tell(f'ended/{index()}', [status, message])
    else:
      barrier('end')
  sys.stdout.flush()
  _leave(status)


def stderr():
  """The program's standard error, which `begin` has silenced in other processes than the first."""
  return _watch.stderr or sys.stderr


def _leave(status):
  if index() == 0:
    time.sleep(_LAST)  # The others read why.
  _delete_folder()
  with contextlib.suppress(Exception):
    sys.stdout.flush()
  os._exit(status)


def _delete_folder():
  if _watch.folder:
    with contextlib.suppress(Exception):
      shutil.rmtree(_watch.folder)


def _say(line):
  """Prints a line whatever state the interpreter is in."""
  with contextlib.suppress(OSError):
    os.write(2, f'{line}\n'.encode(errors='replace'))


def _end_on_abort():
  """Makes of SIGABRT, by which XLA ends a process that has lost another, a line and a status.

  In C++, on a thread that is none of Python's, so that no handler of Python's would be called.
  """
  def handle(number):
    if _watch.phase == 'begin':
      _say(f'error: the processes have not met: not all have come within {_MEETING} s, one has '
           'ended, or two have the same --process_id')
      os._exit(NotMetError.exit_status)
    _say(f'interrupted: {name()} ends, as another one was lost, or it crashed itself (above); the '
         'same command goes on')
    _delete_folder()
    os._exit(TRY_AGAIN)

  # Kept for as long as the process.
  _watch.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
  set_handler = ctypes.CDLL(None).signal
  set_handler.argtypes = [ctypes.c_int, ctypes.c_void_p]
  set_handler(int(signal.SIGABRT), ctypes.cast(_watch.handler, ctypes.c_void_p))


def _look_after_others():
  """Ends this process where another one has said that it ends, or nothing moves any more."""
  while not _watch.stopped.wait(_LOOK):
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # Process 0 is gone: XLA ends this one.
      for number, (status, message) in posted('ended').items():
        if number != index():
          _say(f'{"interrupted" if status == TRY_AGAIN else "error"}: {name()} ends, as process '
               f'{number} does: {message}')
          _leave(status)
      _look_for_stuck()


def _look_for_stuck():
  last = _watch.last
  if not _watch.step_timeout or last is None:
    return
  if any(posted('writes').values()):
    _watch.held = time.monotonic()
  post('steps', _watch.steps)
  if time.monotonic() - max(last, _watch.held) > _watch.step_timeout:
    steps = posted('steps')
    behind = [str(number) for number, step in steps.items() if step < max(steps.values())]
    message = (f'no step for {_watch.step_timeout} s (--step_timeout)'
               + (f', process {", ".join(behind)} is behind' if behind else '')
               + '; the same command goes on')
    _say(f'interrupted: {name()}: {message}')
    tell(f'ended/{index()}', [TRY_AGAIN, message])
    _leave(TRY_AGAIN)
