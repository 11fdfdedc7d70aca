"""One contestant at one work, in a process of its own: `python -m benchmarks.worker`.

It reads requests from stdin and answers on stdout, one JSON value a line; while it waits it sleeps.
What the frameworks print goes to stderr.
"""

import json
import os
import resource
import sys
import time

import numpy as np

from benchmarks.work import Contestant, Work


def main():
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  job = None
  for line in sys.stdin:
    request = json.loads(line)
    if request['do'] == 'start':
      job, answer = start(**request['with'])
    else:
      answer = REQUESTS[request['do']](job, **request['with'])
    print(json.dumps(answer), file=answers, flush=True)


def start(work, contestant, weights, device):
  """The job, and what its first call, compilation included, took."""
  work, contestant = Work(*work), Contestant(*contestant)
  module = implementation(contestant)
  begun = time.perf_counter()
  job = module.build(work, contestant, weights, device)
  built = time.perf_counter()
  seconds(job, 1)
  return job, {'build_seconds': built - begun, 'first_call_seconds': time.perf_counter() - built,
               'about': job.about}


def implementation(contestant):
  """The module that has the contestant's kind of `build`."""
  if contestant.kind == 'ours':
    from benchmarks import ours
    return ours
  if contestant.kind == 'torch':
    from benchmarks import torch_rivals
    return torch_rivals
  from benchmarks import library_rivals
  return library_rivals


def seconds(job, calls):
  """What `calls` calls take."""
  begun = time.perf_counter()
  for _ in range(calls):
    job.call()
  job.wait()
  return time.perf_counter() - begun


def check(job, path):
  """Writes what should be the same for all contestants to an .npz file."""
  np.savez(path, **job.check())


def settle(job, block_seconds):
  """Calls of a block that takes about `block_seconds`, one at least."""
  once = min(seconds(job, 1) for _ in range(2))
  return max(1, round(block_seconds / once))


def memory(job):
  """Peak bytes so far: of the process, compilation included, and of the device (or None)."""
  process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  unit = 1 if sys.platform == 'darwin' else 1024
  return {'process': process * unit, 'device': job.memory()}


def peak(job, contestant, device, measured_seconds):
  """[FLOP/s, bytes/s] of a large matrix product and of a large copy."""
  del job
  contestant = Contestant(*contestant)
  return implementation(contestant).peak(contestant, device, measured_seconds)


def weights(job, model, path):
  """Saves PyTorch weights of a network for all contestants to `path`."""
  del job
  import torch

  from benchmarks import torch_models
  torch.save(torch_models.typical_weights(model), path)


REQUESTS = {'seconds': seconds, 'check': check, 'settle': settle, 'memory': memory, 'peak': peak,
            'weights': weights}


if __name__ == '__main__':
  main()
