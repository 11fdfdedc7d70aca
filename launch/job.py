"""What a job of a cluster does: one command, which saves and is queued again where its time ends.

It imports nothing that takes memory: its process waits beside a run for hours.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time

import submitit

# In a log, before the words of a command; what follows is of this attempt.
BEGIN = '$ '


class Job:
  """A command as submitit runs it: a callable with a method `checkpoint`.

  Clusters differ in whom they signal: SLURM by cgroups only the first process of a job, by other
  means all of them. A second signal would end a run without saving. So the run does not hear the
  cluster's signals; this process does, and sends it one SIGINT.

  Args:
    words: of the command.
  """

  def __init__(self, words):
    self.words = list(words)
    self._process, self._told = None, False

  def __call__(self):
    """Runs the command, and ends the process with its status unless that is 0."""
    print(BEGIN + shlex.join(self.words), flush=True)
    blocked = {signal.SIGTERM, getattr(signal, f'SIG{submitit.JobEnvironment.USR_SIG}')}
    # Blocked signals are so in the run too; those that come meanwhile are handled here afterwards.
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    self._process = subprocess.Popen(self.words, process_group=0)
    for number in (signal.SIGTERM, signal.SIGINT):  # The other one has submitit's own handler.
      signal.signal(number, lambda number, frame: self._tell())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
    while (status := self._process.poll()) is None:
      time.sleep(0.1)
    if status < 0:
      print(f'error: {signal.Signals(-status).name} ended the run', flush=True)
      status = 128 - status
    if status:
      sys.exit(status)

  def checkpoint(self):
    """What submitit calls where time ends or a job is preempted; returns what to queue again."""
    if self._process:
      self._tell()
      # Not Popen.wait: the signal may have come amidst the poll above, which holds its lock.
      with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
    return submitit.helpers.DelayedSubmission(Job(self.words))

  def _tell(self):
    if not self._told:
      self._told = True
      self._process.send_signal(signal.SIGINT)
