"""How our own cost grows: `python -m benchmarks.scaling`.

Measures a SmoothAdv step against noises, steps, batch and devices, and certification against images
and draws; fits a line to each; writes benchmarks/results/scaling-NETWORK.json, docs/scaling.svg and
the table of docs/scaling.md. The points of a curve take turns, each in a process of its own.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import flops, hardware, results
from benchmarks.process import Worker, WorkerError, take_turns
from benchmarks.work import CONTESTANTS, L2, SIGMA, Work

DOCS = Path(__file__).parents[1] / 'docs'
_BEGIN, _END = '<!-- measured -->\n', '<!-- end -->'


def step(model, **changes):
  """A SmoothAdv step of two noises and two steps on 64 images, but for the changes."""
  work = Work('smoothadv', model, 64, num_steps=2, num_noise=2, epsilon=L2, sigma=SIGMA)
  return work._replace(**changes)


def votes(model, **changes):
  """Certification of one image by 1,000 draws in passes of 500 rows, but for the changes."""
  work = Work('certify', model, 500, num_images=1, num_draws=1000, sigma=SIGMA)
  return work._replace(**changes)


class Curve(NamedTuple):
  """What is measured against what.

  Attributes:
    says: what varies, for people.
    field: of `Work`.
    values: it takes.
    make: (model, field=value) -> Work.
    line_from: the smallest value that a line is fitted to; None for no line.
  """

  says: str
  field: str
  values: tuple[int, ...]
  make: Callable
  line_from: int | None = 0


CURVES = {
    'noises': Curve('noises m', 'num_noise', (1, 2, 4, 8, 16), step),
    'steps': Curve('attack steps T', 'num_steps', (0, 1, 2, 5, 10, 20, 24), step),
    'batch': Curve('images of a batch', 'batch', (8, 16, 32, 64, 128, 256, 512), step),
    'devices': Curve('devices', 'num_devices', (1, 2, 4, 8), step, None),
    'images': Curve('images to certify', 'num_images', (1, 2, 4, 8, 16, 32), votes),
    # Fewer than 1,000 draws leave a pass, or the second core, without work.
    'draws': Curve('draws of an image', 'num_draws', (100, 500, 1000, 2000, 4000, 8000, 16000),
                   votes, 1000),
}


def measure(curve, model, python, rounds, block_seconds):
  """A curve of `CURVES`: {'x', 'first_call': [seconds], 'seconds': [[of a call] a round]}."""
  _, field, values, make, _ = CURVES[curve]
  contestant, workers, first_call, calls = CONTESTANTS['cpu']['ours'], [], [], []
  try:
    for value in values:
      workers.append(Worker(python, 'cpu', contestant.malloc))
      found = workers[-1].ask('start', work=make(model, **{field: value}), contestant=contestant,
                              weights=None, device='cpu')
      first_call.append(found['first_call_seconds'])
      calls.append(workers[-1].ask('settle', block_seconds=block_seconds))
    seconds = [[] for _ in values]
    for number in range(rounds):
      for i in take_turns(range(len(values)), number):
        seconds[i].append(workers[i].ask('seconds', calls=calls[i]) / calls[i])
  finally:
    for worker in workers:
      worker.close()
  return {'x': values, 'first_call': first_call, 'seconds': seconds}


def fit(x, seconds, line_from=0):
  """The line a + b x closest to the medians, in relative terms, at x >= line_from.

  Returns:
    (a, b, the largest relative distance of a median from the line).
  """
  chosen = [i for i, value in enumerate(x) if value >= line_from]
  x, medians = [x[i] for i in chosen], np.median([seconds[i] for i in chosen], axis=1)
  slope, intercept = np.polyfit(x, medians, 1, w=1 / medians)
  return intercept, slope, float(np.max(np.abs(medians / (intercept + slope * np.array(x)) - 1)))


def table(record):
  """The Markdown of all measured points and fitted lines."""
  rows = []
  for curve, found in record['curves'].items():
    spreads = [results.spread(seconds) for seconds in found['seconds']]
    points = ', '.join(f'{x:,}: {1e3 * s.median:,.0f} ({1e3 * s.low:,.0f}–{1e3 * s.high:,.0f})'
                       for x, s in zip(found['x'], spreads))
    line = ''
    if CURVES[curve].line_from is not None:
      intercept, slope, distance = fit(found['x'], found['seconds'], CURVES[curve].line_from)
      line = f'{1e3 * intercept:,.1f} + {1e3 * slope:,.3g} x, within {distance:.0%}'
    first = ', '.join(f'{x:,}: {value:.1f}' for x, value in zip(found['x'], found['first_call']))
    rows.append(f'| {CURVES[curve].says} | {points} | {line} | {first} |')
  where, date = record['hardware'], record['date'][:10]
  head = (f'{record["model"]}; {where["processor"]}, {where["cores"]} cores; {date}, commit '
          f'{where["commit"]}; jax {record["versions"]["jax"]}. Milliseconds of a call: median '
          f'of {record["rounds"]} rounds (smallest–largest), and the closest line. First call: '
          'compilation and one call, in seconds.')
  return '\n'.join([head, '', '| x | milliseconds at x | fitted milliseconds | first call at x |',
                    '| --- | --- | --- | --- |', *rows, '', update_in_steps(record)])


def update_in_steps(record):
  """What the update costs beside a step of the attack, measured and by the count of FLOPs."""
  found = record['curves'].get('steps')
  if found is None:
    return ''
  intercept, slope, _ = fit(found['x'], found['seconds'])
  counted = [flops.per_item(step(record['model'], num_steps=steps)) for steps in (0, 1)]
  return (f'Noise, update and all else but the attack cost as much as {intercept / slope:.1f} of '
          f'its steps; by the count of FLOPs {counted[0] / (counted[1] - counted[0]):.1f}.')


def draw(record, path):
  """One panel a curve, as SVG: medians, range over rounds, fitted line."""
  import matplotlib
  matplotlib.use('svg')
  matplotlib.rcParams.update({'svg.hashsalt': 'scaling', 'font.size': 8})
  from matplotlib import pyplot
  figure, axes = pyplot.subplots(2, 3, figsize=(9, 5), constrained_layout=True)
  for panel, (curve, found) in zip(axes.flat, record['curves'].items()):
    x, seconds = np.array(found['x']), 1e3 * np.array(found['seconds'])
    middle = np.median(seconds, axis=1)
    panel.errorbar(x, middle, [middle - seconds.min(1), seconds.max(1) - middle], fmt='o',
                   markersize=3, capsize=2)
    says, _, _, make, line_from = CURVES[curve]
    if line_from is not None:
      intercept, slope, _ = fit(x, seconds, line_from)
      panel.plot(x, intercept + slope * x, linewidth=1)
    panel.set(xlabel=says, ylabel='ms a step' if make is step else 'ms a call')
    panel.set_ylim(0)
    panel.locator_params('x', nbins=5, integer=True)
    panel.grid(alpha=0.3)
  figure.savefig(path, metadata={'Date': None})
  pyplot.close(figure)


def write_docs(record, docs):
  """The figure, and the table in docs/scaling.md."""
  draw(record, docs / 'scaling.svg')
  page = docs / 'scaling.md'
  before, rest = page.read_text(encoding='utf-8').split(_BEGIN)
  after = rest.partition(_END)[2]
  page.write_text(f'{before}{_BEGIN}{table(record)}\n{_END}{after}', encoding='utf-8')


def parse(argv):
  parser = argparse.ArgumentParser(prog='python -m benchmarks.scaling', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--model', default='lenet', choices=('lenet', 'resnet20'))
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--seconds', type=float, default=1., help='length of a block')
  parser.add_argument('--curves', default=','.join(CURVES),
                      help='of %(default)s; the others stay as they were measured')
  parser.add_argument('--python-ours', default=sys.executable)
  return parser.parse_args(argv)


def main(argv):
  options = parse(argv)
  unknown = set(options.curves.split(',')) - set(CURVES)
  if unknown:
    sys.exit(f'error: --curves has {", ".join(unknown)}; {", ".join(CURVES)} are allowed')
  path = results.path(f'scaling-{options.model}')
  old = json.loads(path.read_text(encoding='utf-8'))['curves'] if path.exists() else {}
  new = {}
  for curve in CURVES:
    if curve in options.curves.split(','):
      print(curve, flush=True)
      new[curve] = measure(curve, options.model, options.python_ours, options.rounds,
                           options.seconds)
    elif curve in old:
      new[curve] = old[curve]
  record = {
      'date': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
      'model': options.model, 'rounds': options.rounds, 'hardware': hardware.describe('cpu'),
      'versions': hardware.versions(options.python_ours), 'curves': new}
  results.write(path, record)
  write_docs(record, DOCS)
  print(table(record))
  return 0


if __name__ == '__main__':
  try:
    sys.exit(main(sys.argv[1:]))
  except WorkerError as error:
    sys.exit(f'error: {error}')
