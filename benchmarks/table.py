"""The Markdown tables of a results file: `python -m benchmarks.table RESULTS.json`."""

import json
import sys
from pathlib import Path

from benchmarks import results
from benchmarks.work import Work
from robust_jax import terminal


def markdown(record):
  """All tables of a results file, as text."""
  hardware = record['hardware']
  where = hardware.get('gpu') or f'{hardware["processor"]}, {hardware["cores"]} cores'
  versions = {**record['versions']['torch'], **record['versions']['ours']}
  commit = f', commit {hardware["commit"]}' if hardware['commit'] else ''
  parts = [f'{where}; {record["date"][:10]}{commit}; '
           + ', '.join(f'{name} {version}' for name, version in versions.items()) + '.',
           quiet(record),
           'Contestants: ' + '; '.join(f'{name}: {c["says"]}'
                                       for name, c in record['contestants'].items()) + '.']
  for precision in dict.fromkeys(c['precision'] for c in record['contestants'].values()):
    parts += [speed(record, precision), besides(record, precision)]
  parts += [agreement(record), *absent(record)]
  return '\n\n'.join(part for part in parts if part)


def quiet(record):
  """Whether other processes disturbed the run."""
  shares = [line['others_busy'] for line in record['lines'] if line['others_busy'] is not None]
  if not shares:
    return ''
  return (f'Just before the lines others kept the cores busy for {max(shares):.0%} of the time at '
          'most. ' + ('**Not a quiet machine: do not trust the ratios.**' if max(shares) > 0.1
                      else '')).strip()


def speed(record, precision):
  """Rates of all contestants of a precision, and the ratio of ours to PyTorch's best."""
  names = _names(record, precision)
  rows = []
  for line in record['lines']:
    work = Work(**line['work'])
    if set(names) & set(line['results']):
      rows.append([work.model, work.label, str(work.batch), work.unit,
                   *(_rate(line, name) for name in names), _ratio(record, line, precision)])
  if not rows:
    return ''
  return (f'**Speed, {precision}**: median of {record["rounds"]} rounds (smallest–largest). Ratio: '
          'ours over the fastest of those written in PyTorch for the purpose (torch...), round by '
          'round; above 1, ours is faster.\n\n'
          + _table(['network', 'task', 'batch', 'unit', *names, 'ratio'], rows))


def besides(record, precision):
  """Share of the machine's peak, memory and first call of ours and of PyTorch's best."""
  kinds = ('process',) if record['device'] == 'cpu' else ('process', 'device')
  rows, measured = [], []
  for line in record['lines']:
    measured += results.peaks(line, precision)
    ours, rival = _ours(record, line, precision), results.best_rival(record, line, precision)
    for name in filter(None, (ours, rival)):
      found, work = line['results'][name], Work(**line['work'])
      memory = found['peak_bytes']
      rows.append([
          work.model, work.label, name,
          f'{results.share_of_peak(record, line, name).median:.0%}',
          *(f'{memory[kind] / 2**20:,.0f}' for kind in kinds),
          f'{found["build_seconds"] + found["first_call_seconds"]:.1f}'])
  if not rows:
    return ''
  flops, copied = (results.spread(values) for values in zip(*measured))
  return (f'**Besides speed, {precision}**. Share of peak: useful arithmetic (benchmarks/flops.py) '
          'over that of a large matrix product, measured in the same rounds: '
          f'{flops.median / 1e9:,.0f} GFLOP/s ({flops.low / 1e9:,.0f}–{flops.high / 1e9:,.0f}); a '
          f'large copy reads and writes {copied.median / 1e9:,.1f} GB/s ({copied.low / 1e9:,.1f}–'
          f'{copied.high / 1e9:,.1f}). Memory: the most that the process had, compilation '
          'included (and the most on the device). First call: building, compiling and one '
          'call.\n\n'
          + _table(['network', 'task', 'contestant', 'share of peak',
                    *(f'{kind} MiB' for kind in kinds), 'first call s'], rows))


def agreement(record):
  """How far contestants' answers to the same question lie apart."""
  worst = {}
  for line in record['lines']:
    for name, quantities in line['differences'].items():
      for quantity, found in quantities.items():
        key = record['contestants'][name]['precision'], quantity
        old = worst.get(key, found)
        worst[key] = {field: max(old[field], found[field]) for field in found}
  if not worst:
    return ''
  rows = [[precision, quantity, f'{found["max"]:.1e}', f'{found["scale"]:.3g}',
           f'{found["share"]:.3%}'] for (precision, quantity), found in worst.items()]
  warning = ''.join(f' **{name} computes something else on {network}.**'
                    for network, name in sorted(results.disagreeing(record)))
  return ('**The same work**: with the same weights and no noise, compared with the first '
          'contestant. An activation within rounding of zero turns a gradient entry, and PGD '
          f'amplifies it.{warning}\n\n'
          + _table(['precision', 'what', 'largest difference', 'largest entry',
                    'entries that differ by more than 1/1000 of it'], rows))


def absent(record):
  """What was not measured."""
  found = [f'{name} was left out: {package} is not installed.'
           for name, package in record['missing'].items()]
  for line in record['lines']:
    work = Work(**line['work'])
    found += [f'{name} failed at {work.model} {work.label}: {message.splitlines()[-1]}'
              for name, message in line['failed'].items()]
  return found


def brief(record, line):
  """What one line says, for the terminal."""
  unit = Work(**line['work']).unit
  parts = [f'{name} {_rate(line, name)}' for name in line['results']]
  ratios = [_ratio(record, line, precision)
            for precision in dict.fromkeys(c['precision'] for c in record['contestants'].values())]
  return f'  {unit}: {"; ".join(parts)}; ratio {" / ".join(filter(None, ratios)) or "-"}'


def _names(record, precision):
  return [name for name, c in record['contestants'].items() if c['precision'] == precision]


def _ours(record, line, precision):
  ours = [name for name in _names(record, precision)
          if record['contestants'][name]['kind'] == 'ours']
  return ours[0] if ours and ours[0] in line['results'] else None


def _ratio(record, line, precision):
  ours, rival = _ours(record, line, precision), results.best_rival(record, line, precision)
  if ours is None or rival is None:
    return ''
  found = results.ratio(line, ours, rival)
  return f'**{found.median:.2f}** ({found.low:.2f}–{found.high:.2f})'


def _rate(line, name):
  if name not in line['results']:
    return ''
  found = results.spread(results.rates(line, name))
  digits = 0 if found.median >= 100 else 1
  return f'{found.median:,.{digits}f} ({found.low:,.{digits}f}–{found.high:,.{digits}f})'


def _table(head, rows):
  return '\n'.join(f'| {" | ".join(cells)} |' for cells in (head, ['---'] * len(head), *rows))


if __name__ == '__main__':
  if len(sys.argv) != 2:
    sys.exit('error: python -m benchmarks.table RESULTS.json')
  terminal.prepare(output_is_all=True)
  print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding='utf-8'))))
