"""Settings of the process, made before jax computes anything: memory, XLA's flags, compilations."""

import ctypes
import hashlib
import os
import platform
import sys
import tempfile
from pathlib import Path

import jax
import jaxlib

from robust_jax.cpu import onednn

# glibc's mallopt parameters, by their numbers in malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_INT_MAX = 2**31 - 1


def tune():
  """Keeps freed memory, chooses XLA's faster convolutions, keeps what it compiled on disk.

  Results change in last bits. See `keep_memory`, `xla_flags` and `keep_compilations`, which do
  nothing where they do not apply.
  """
  keep_memory()
  keep_compilations()
  known = os.environ.get('XLA_FLAGS', '')
  flags = [flag for flag in xla_flags() if flag.split('=')[0] not in known]
  os.environ['XLA_FLAGS'] = ' '.join([known, *flags]).strip()


def keep_memory():
  """Has glibc keep the memory that is freed, and take it from one arena.

  XLA:CPU frees its temporary buffers after every call. By default their pages go back to the
  system and are faulted in again at the next call, which costs a fifth to a half of a train step
  of ResNet-20. The process stays at its largest size instead. Without glibc's malloc it has no
  effect. Only the first of glibc's arenas keeps buffers of more than 64 MiB: from others they are
  mapped anew, and zeroed, at every call.
  """
  if platform.libc_ver()[0] != 'glibc':
    return
  mallopt = ctypes.CDLL(None).mallopt
  for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _INT_MAX),
                           (_TOP_PAD, 2**26)):
    mallopt(parameter, value)


def xla_flags():
  """XLA's flags, which only a jaxlib that knows them may be given: others end the process.

  Left to itself XLA computes the convolutions that `onednn` does not take with YNNPACK one by one;
  Eigen, which this flag leaves them to, takes half the time for kernel gradients. Sums and what is
  elementwise stay with YNNPACK, whose maximum may lose a NaN: the other argument comes out. In
  jaxlib 0.10.2, with this flag and without any, it is wrong where a matrix product of few rows is
  squared and summed for more than 32,768 columns (jax-ml/jax#39103), and crashes where products of
  arrays of seven axes are summed (#40412); nothing here does either.
  """
  return ['--xla_cpu_experimental_ynn_fusion_type=eltwise,reduce'] if onednn.available() else []


def keep_compilations():
  """Keeps compiled programs on disk, so that a config's second launch starts sooner.

  Where: $JAX_COMPILATION_CACHE_DIR, or a folder in ~/.cache/robust_jax ($XDG_CACHE_HOME), which may
  be deleted at any time. Each kind of machine has a folder of its own, because XLA compiles for the
  CPU that it finds. Programs with oneDNN's convolutions cannot be kept, and are compiled each time.
  Where the folder cannot be written nothing is kept: jax would warn of each program.
  """
  own = os.environ.get('JAX_COMPILATION_CACHE_DIR')
  kind = hashlib.sha256(_cpu().encode()).hexdigest()[:8]
  home = os.path.expanduser(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
  folder = own or os.path.join(home, 'robust_jax', f'jaxlib-{jaxlib.__version__}-{kind}')
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.)
  # '~' stays where there is no home.
  if '://' not in folder and (folder.startswith('~') or not _is_writable(folder)):
    if own:
      print(f'warning: JAX_COMPILATION_CACHE_DIR is {own!r}, which cannot be written: what is '
            'compiled is not kept', file=sys.stderr)
    folder = None
  jax.config.update('jax_compilation_cache_dir', folder)


def _is_writable(folder):
  """Whether files can be made in a folder, which is made if missing."""
  try:
    os.makedirs(folder, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
  except OSError:
    return False
  return True


def _cpu():
  """The CPU's model and instruction sets, as far as the system tells."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor() or platform.machine()
  return '\n'.join(sorted({line for line in lines if line.startswith(('model name', 'flags'))}))
