"""The machine and the packages that a result was made with."""

import functools
import json
import os
import platform
import re
import subprocess
import time
from pathlib import Path

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'torch', 'torchattacks', 'foolbox',
             'adversarial-robustness-toolbox')
_ASK = f"""
import importlib.metadata, json, platform
found = {{'python': platform.python_version()}}
for name in {_PACKAGES}:
  try:
    found[name] = importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    pass
print(json.dumps(found))
"""


@functools.cache
def versions(python):
  """{package: version} of what the interpreter `python` has."""
  return json.loads(subprocess.run([python, '-c', _ASK], capture_output=True, check=True).stdout)


def describe(device):
  """What the results were measured on."""
  found = {
      'processor': processor(), 'cores': len(os.sched_getaffinity(0)),
      'memory_bytes': os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'),
      'system': f'{platform.system()} {platform.release()}', 'commit': commit(),
  }
  if device == 'gpu':
    found['gpu'] = gpu()
  return found


def processor():
  """The processor's name."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    return next(line.partition(': ')[2] for line in lines if line.startswith('model name'))
  except (OSError, StopIteration):
    return platform.processor() or platform.machine()


def gpu():
  """Name and driver of the first GPU; '' if there is none."""
  return _answer('nvidia-smi', '--query-gpu=name,driver_version',
                 '--format=csv,noheader').partition('\n')[0]


def busy_share(seconds=1.):
  """Share of the cores' time that others take while this process waits; None but on Linux."""
  before = _core_times()
  time.sleep(seconds)
  after = _core_times()
  if before is None:
    return None
  spent = [b - a for a, b in zip(before, after)]
  # user, nice, system, idle, iowait, irq, softirq, steal
  return 1 - (spent[3] + spent[4]) / max(sum(spent), 1)


def _core_times():
  try:
    with open('/proc/stat') as file:
      return [int(word) for word in file.readline().split()[1:9]]
  except OSError:
    return None


def commit():
  """The commit of this checkout, with a plus where files differ from it; '' without git."""
  return _answer('git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty=+')


def _answer(*command):
  """What a command prints; '' where it fails or does not exist."""
  try:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return ''


def name(hardware, date):
  """A file name for results: the device and the day."""
  plain = re.sub(r'\(\w+\)|@.*|Processor|CPU', '', hardware['processor'])
  device = hardware.get('gpu', '').partition(',')[0] or f'{plain} {hardware["cores"]} cores'
  return '-'.join(re.findall(r'[a-z0-9]+', f'{device} {date[:10]}'.lower()))
