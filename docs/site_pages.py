"""What mkdocs calls: some files of the checkout outside docs/ are pages of the site as well."""

import json
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# {path in the checkout: path in the site}; docs/NAME is NAME there.
PAGES = {'README.md': 'index.md', 'notebooks/quickstart.ipynb': 'quickstart.md',
         **{f'notebooks/{chapter}.ipynb': f'{chapter}.md' for chapter in (
             '1_introduction', '2_linear_models', '3_adversarial_examples', '4_training')},
         'benchmarks/README.md': 'benchmarks.md', 'CONTRIBUTING.md': 'CONTRIBUTING.md',
         'CHANGELOG.md': 'CHANGELOG.md', 'LICENSE': 'LICENSE.md', 'CITATION.cff': 'CITATION.cff'}
LINK = re.compile(r'\]\((?!\w+:|#)([^)#\s]+)')


def on_files(files, config):
  for source, target in PAGES.items():
    text = (ROOT / source).read_text(encoding='utf-8')
    if source.endswith('.ipynb'):
      text = '\n\n'.join(_cell(cell) for cell in json.loads(text)['cells'])
    if source == 'LICENSE':
      text = f'# License\n\n```text\n{text}\n```\n'
    files.append(File.generated(config, target, content=text))
  return files


def _cell(cell):
  """A cell of a notebook and its outputs as Markdown."""
  source = ''.join(cell['source'])
  if cell['cell_type'] == 'markdown':
    return source
  parts = [f'```python\n{source}\n```']
  for output in cell['outputs']:
    data = output.get('data', {})
    if 'image/png' in data:
      parts.append(f'![](data:image/png;base64,{"".join(data["image/png"]).strip()})')
    elif text := ''.join(output.get('text', data.get('text/plain', ''))):
      parts.append(f'```text\n{text}\n```')
  return '\n\n'.join(parts)


def on_page_markdown(markdown, page, config, files):
  """The page with links between files of the checkout as links between pages of the site."""
  here = page.file.src_uri
  outside = {target: source for source, target in PAGES.items()}
  folder = posixpath.dirname(outside.get(here, f'docs/{here}'))

  def in_site(link):
    path = posixpath.normpath(posixpath.join(folder, link[1]))
    target = PAGES.get(path, path.removeprefix('docs/'))
    return '](' + posixpath.relpath(target, posixpath.dirname(here) or '.')

  return LINK.sub(in_site, markdown)
