"""README and docs: links lead somewhere, commands are understood, no public function is missing."""

import re
import shlex
import sys
from pathlib import Path
from types import FunctionType

import pytest

from launch import flags
from robust_jax import analysis, attacks, bounds, certification, data, models, report, training
from robust_jax.training import methods

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md'), ROOT / 'benchmarks' / 'README.md'])
LINK = re.compile(r'\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)')
COMMAND = re.compile(r'^(?: {4})?(python -m launch (?:.*\\\n)*.*)$', re.MULTILINE)
MY_MODULE = """
from flax import linen as nn

class Net(nn.Module):
  num_classes: int
  width: int = 64
"""
# What stands for something else in a command.
PLACEHOLDER = re.compile(r'\[|\.\.\.|FILE|DATASET')


def anchors(text):
  headings = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
  return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def commands():
  return [pytest.param(line, id=f'{page.stem} {number}') for page in PAGES
          for number, line in enumerate(COMMAND.findall(page.read_text(encoding='utf-8')))
          if not PLACEHOLDER.search(line)]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
  for path, anchor in LINK.findall(page.read_text(encoding='utf-8')):
    target = (page.parent / path) if path else page
    assert target.exists(), path
    if anchor and not anchor.startswith('robust_jax.'):
      assert anchor in anchors(target.read_text(encoding='utf-8')), anchor


@pytest.mark.parametrize('command', commands())
def test_commands_are_understood(command, monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  (tmp_path / 'my_module.py').write_text(MY_MODULE)
  monkeypatch.delitem(sys.modules, 'my_module', raising=False)
  monkeypatch.syspath_prepend(tmp_path)
  words = shlex.split(command.replace('\\\n', ' '), comments=True)[2:]
  if '--list' in words:
    with pytest.raises(SystemExit):
      flags.parse(words)
  else:
    assert flags.parse(words).stages


@pytest.mark.parametrize('package', [analysis, attacks, bounds, certification, data, models, report,
                                     training, methods], ids=lambda package: package.__name__)
def test_every_public_function_has_its_place_in_the_documentation(package):
  pages = ''.join(page.read_text(encoding='utf-8') for page in ROOT.glob('docs/api/*.md'))
  documented = re.findall(r'^::: (\S+)$', pages, re.MULTILINE)
  for name in getattr(package, '__all__', methods.METHODS):
    value = getattr(package, name)
    if isinstance(value, (type, FunctionType)) and value.__module__ not in documented:
      # A package shows what it imports, unless a module of it has the same name.
      assert package.__name__ in documented, name
      assert not (Path(package.__file__).parent / f'{name}.py').exists(), name


def test_the_readme_is_short_and_shows_a_table_of_contents():
  text = (ROOT / 'README.md').read_text(encoding='utf-8')
  assert len(text.splitlines()) <= 115
  for heading in re.findall(r'^## (.*)$', text, re.MULTILINE):
    assert f'](#{heading.lower().replace(" ", "-")})' in text
