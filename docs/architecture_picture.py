"""The picture of docs/architecture.md, made of the imports: python docs/architecture_picture.py.

Arrows that follow from others are left out. Where the pointer rests on a box, a text has all that
it imports.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / 'docs' / 'images' / 'architecture.svg'
WIDTH, ROW, BOX = 860, 62, (116, 30)


def imported(path):
  """Dotted names of the modules, and names taken from them, that a file imports."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def graph():
  """{part: parts that it imports} of robust_jax, launch and configs.

  A package's __main__.py is a program, of which nothing is imported: it counts as launch.
  """
  parts = {'backend': {'cpu'}}  # By importlib.
  for top in ('robust_jax', 'launch', 'configs'):
    for path in (ROOT / top).rglob('*.py'):
      part = path.relative_to(ROOT / top).parts[0].removesuffix('.py')
      part = 'launch' if path.stem == '__main__' else part if top == 'robust_jax' else top
      if part != '__init__':
        parts.setdefault(part, set()).update(
            name.removeprefix('robust_jax.').split('.')[0] for name in imported(path))
  return {part: names & parts.keys() - {part} for part, names in parts.items()}


def rows(parts):
  """Lists of parts, the lowest first, each in the first row above all that it imports."""
  found, left = [], set(parts)
  while left:
    row = sorted(name for name in left if not parts[name] & left)
    assert row, f'a circle of imports among {sorted(left)}'
    found.append(row)
    left -= set(row)
  return found


def draw(parts):
  """The picture as SVG."""
  levels, place, links, under, boxes, lines = rows(parts), {}, [], {}, [], []
  height, level = ROW * len(levels), {name: n for n, row in enumerate(levels) for name in row}
  for name in sorted(parts, key=level.get):
    under[name] = parts[name].union(*(under[below] for below in parts[name]))
    for below in sorted(parts[name]):
      if not any(below in under[other] for other in parts[name]):
        # Through a place in each row between, which all arrows to the same box share.
        way = [name, *((below, n) for n in range(level[name] - 1, level[below], -1)), below]
        links += [link for link in zip(way, way[1:]) if link not in links]
  for number, row in enumerate(levels):
    row += sorted({above for above, _ in links if above[1] == number})
    # Above the middle of what they point at.
    aim = {name: [place[below][0] for above, below in links if above == name] for name in row}
    row.sort(key=lambda name: sum(aim[name]) / max(len(aim[name]), 1))
    for column, name in enumerate(row):
      x, y = place[name] = WIDTH * (column + 0.5) / len(row), height - ROW * (number + 0.5)
      if name in parts:
        boxes.append(f'<g><title>{name}: {", ".join(sorted(parts[name]))}</title>'
                     f'<rect x="{x - BOX[0] / 2:.0f}" y="{y - BOX[1] / 2:.0f}"/>'
                     f'<text x="{x:.0f}" y="{y + 5:.0f}">{name}</text></g>')
  for above, below in links:
    (x, y), (to_x, to_y) = place[above], place[below]
    y, to_y = y + BOX[1] / 2, to_y - BOX[1] / 2
    end = '" marker-end="url(#tip)' if below in parts else f'v{BOX[1]}'
    lines.append(f'<path class="arrow" d="M{x:.0f} {y:.0f}C{x:.0f} {y + 20:.0f} {to_x:.0f} '
                 f'{to_y - 24:.0f} {to_x:.0f} {to_y:.0f}{end}"/>')
  return '\n'.join([
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">',
      '<style>text{font:15px sans-serif;text-anchor:middle}.arrow{fill:none;stroke:#678}'
      f'rect{{width:{BOX[0]}px;height:{BOX[1]}px;rx:5px;fill:#e8eff7;stroke:#4a7ab0}}</style>',
      '<marker id="tip" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="8" markerHeight="8" '
      'orient="auto"><path d="M0 0L6 3L0 6z" fill="#678"/></marker>',
      f'<path d="M0 0h{WIDTH}v{height}H0z" fill="#fff"/>', *lines, *boxes, '</svg>', ''])


if __name__ == '__main__':
  PICTURE.write_text(draw(graph()), encoding='utf-8')
