"""jemalloc, and starting again with it; a library that is always there stands in for it."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from launch import allocator

ROOT = Path(__file__).parents[1]
STAND_IN = 'libm.so.6'

needs_linux = pytest.mark.skipif(
    sys.platform != 'linux' or platform.libc_ver()[0] != 'glibc',
    reason='libraries are preloaded with glibc alone')


def write(folder, name, library=STAND_IN, module=None):
  """A program `python -m name`, which says what it was started with."""
  (folder / f'{name}.py').write_text(f"""
import os, sys
from launch import allocator
allocator.LIBRARY = {library!r}
print('begun', os.getpid(), flush=True)
allocator.start_again({module or name!r})
print(os.getpid(), os.environ.get('LD_PRELOAD'), os.environ.get('MALLOC_CONF'), sys.argv[1:])
""")


def run(folder, name, *words, **variables):
  kept = {key: value for key, value in os.environ.items()
          if key not in ('LD_PRELOAD', 'MALLOC_CONF')}
  path = os.pathsep.join([str(ROOT), str(folder)])
  words = [str(folder / name)] if name.endswith('.py') else ['-m', name, *words]
  done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True,
                        timeout=120, cwd=ROOT, env={**kept, 'PYTHONPATH': path, **variables})
  assert not done.stderr
  return done.stdout.splitlines()


@needs_linux
def test_a_program_starts_again_once_as_the_same_process(tmp_path):
  write(tmp_path, 'program')
  first, second, end = run(tmp_path, 'program', '--flag=a b', '')
  pid = first.split()[1]
  assert second == f'begun {pid}'
  assert end == f"{pid} {STAND_IN} {allocator.SETTINGS} ['--flag=a b', '']"


@needs_linux
def test_the_users_own_settings_stay(tmp_path):
  write(tmp_path, 'program')
  for mine in ('', 'libdl.so.2'):
    begun, end = run(tmp_path, 'program', LD_PRELOAD=mine)
    assert end == f'{begun.split()[1]} {mine} None []'
  *_, end = run(tmp_path, 'program', MALLOC_CONF='narenas:1')
  assert end.endswith(f' {STAND_IN} {allocator.SETTINGS},narenas:1 []')


@needs_linux
def test_a_start_that_loses_its_library_is_the_last(tmp_path):
  write(tmp_path, 'program')
  (tmp_path / 'sitecustomize.py').write_text("import os; os.environ.pop('LD_PRELOAD', None)")
  first, second, end = run(tmp_path, 'program')
  assert first == second and end == f'{first.split()[1]} None {allocator.SETTINGS} []'


@needs_linux
def test_what_cannot_be_preloaded_is_left(tmp_path):
  write(tmp_path, 'program', library='libnowhere.so.9')
  assert run(tmp_path, 'program')[-1].endswith('None None []')


@needs_linux
def test_other_programs_are_not_started_again(tmp_path):
  """A notebook or a debugger that runs `launch` stays the process it is."""
  write(tmp_path, 'notebook', module='launch')
  assert len(run(tmp_path, 'notebook', '-m', 'launch')) == 2
  write(tmp_path, 'program')
  (tmp_path / 'starter.py').write_text("""
import runpy, sys
sys.orig_argv += ['-m', 'program']
runpy.run_module('program', run_name='__main__')
""")
  assert len(run(tmp_path, 'starter.py')) == 2


@pytest.mark.parametrize('words, program', [
    ('-m launch --redo=train', True), ('-X dev -Wignore -u -m launch', True), ('-mlaunch', False),
    ('-W ignore -m launch', True), ('-m memray run -m launch', False), ('x.py -m launch', False),
    ('-c pass -m launch', False), ('', False), ('-m', False)])
def test_the_program_among_the_interpreters_words(words, program):
  assert allocator._is_program('launch', words.split()) == program


def test_nothing_is_added_off_linux(monkeypatch):
  monkeypatch.setattr(allocator, 'LIBRARY', STAND_IN)
  monkeypatch.delenv('LD_PRELOAD', raising=False)
  monkeypatch.setattr(sys, 'platform', 'darwin')
  assert allocator.environment() == {}


@needs_linux
def test_the_launcher_starts_again_before_it_imports_anything(tmp_path):
  (tmp_path / 'sitecustomize.py').write_text(f"""
import os, sys
from launch import allocator
allocator.LIBRARY = {STAND_IN!r}
with open({str(tmp_path / 'starts')!r}, 'a') as file:
  print(os.environ.get('LD_PRELOAD'), file=file)
execve = os.execve
def loud(*arguments):
  assert 'jax' not in sys.modules and 'numpy' not in sys.modules
  execve(*arguments)
os.execve = loud
""")
  assert any('--config' in line for line in run(tmp_path, 'launch', '--help'))
  assert (tmp_path / 'starts').read_text().splitlines() == ['None', STAND_IN]


@needs_linux
def test_jemalloc_is_in_the_process(tmp_path):
  (tmp_path / 'program.py').write_text("""
from launch import allocator
allocator.start_again('program')
print('jemalloc' in open('/proc/self/maps').read())
""")
  if not allocator.environment({name: value for name, value in os.environ.items()
                                if name not in ('LD_PRELOAD', 'MALLOC_CONF')}):
    pytest.skip(f'{allocator.LIBRARY} is not installed')
  assert run(tmp_path, 'program') == ['True']
