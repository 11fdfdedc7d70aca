"""Deterministic certificates on the page of a run: between bound and attack."""

import numpy as np

from robust_jax import analysis
from robust_jax.analysis import Table
from robust_jax.config import lengths
from robust_jax.report import charts, pages
from robust_jax.report.charts import Chart, Line

_METHODS = {'ibp': 'IBP', 'crown_ibp': 'CROWN-IBP', 'crown': 'CROWN',
            'forward': 'forward bounds', 'alpha': 'α-CROWN', 'wong_kolter': 'Wong–Kolter'}


def method(log) -> str:
  """What the images are verified by, as a reader says it."""
  name = _METHODS.get(log.header['method'], log.header['method'])
  return f'{name} and the exact verifier' if log.header.get('exact') else name


def shown_radius(log, config):
  """The place, in the epsilons of the log, of the training, else of the largest verified."""
  method = config.get('method', {})
  if 'epsilon' in method and lengths.norm_of_method(method) == log.header['norm']:
    # A method's own radius may be larger than that which it is for.
    for trained in filter(None, (config.get('epsilon'), method['epsilon'])):
      near = np.flatnonzero(np.isclose(log.epsilons, trained, rtol=1e-3))
      if len(near):
        return int(near[0])
  return int(np.flatnonzero(log.verified.any(axis=0)).max(initial=0))


def table(log, attack, name) -> Table:
  """Clean, attacked and verified accuracy at each radius, and what is between them.

  Args:
    log: `analysis.BoundLog`, with images.
    attack: `analysis.AttackLog` of the attack stage, or None.
    name: of that attack; shown where it is of the same network, norm and images.
  """
  other = _other(log, attack)
  verified, unbroken = analysis.robust_interval(log, attack)
  clean, number = np.mean(log.predict == log.label), len(log.idx)
  exact = log.header.get('exact')
  columns = {'PGD (%)': [clean, *log.withstood.mean(axis=0)]}
  if other is not None:
    columns[f'{name} (%)'] = [clean, *other]
  columns['verified (%)'] = everything = [clean, *verified]
  columns['not decided (%)'] = [0., *(unbroken - verified)]
  low, high = analysis.accuracy_interval(everything, number)
  rows = []
  for i, epsilon in enumerate([0., *log.epsilons]):
    figures = [None if np.isnan(values[i]) else f'{100 * values[i]:.1f}'
               for values in columns.values()]
    row = [pages.epsilon(epsilon) if epsilon else '0', *figures[:-1],
           f'{100 * low[i]:.1f}–{100 * high[i]:.1f}', figures[-1],
           f'{round(everything[i] * number)}/{number}']
    if exact:
      row.append(str(np.sum(log.verified & (log.by == 'exact'), axis=0)[i - 1]) if i else None)
    rows.append(row)
  *before, last = columns
  return Table([f"{pages.norm(log.header['norm'])} ε", *before, '95% interval', last, 'images',
                *(['exact'] if exact else [])], rows)


def chart(log, attack, name) -> Chart:
  """The accuracies of `table` against the radius; what lies between them is not decided."""
  scale, label = pages.epsilon_axis(log.header['norm'], log.epsilons)
  verified, unbroken = analysis.robust_interval(log, attack)
  clean, x = np.mean(log.predict == log.label), scale * np.concatenate([[0.], log.epsilons])
  curve = lambda values: np.concatenate([[clean], values])
  interval = lambda values: analysis.accuracy_interval(curve(values), len(log.idx))
  under_pgd, other = log.withstood.mean(axis=0), _other(log, attack)
  lines = [Line('not decided', 'c6', x, curve(verified), (curve(verified), curve(unbroken)),
                band=True),
           Line('under PGD', charts.ATTACK, x, curve(under_pgd), interval(under_pgd), marks=True)]
  if other is not None:
    lines.append(Line(f'under {name}', 'c4', x, curve(other), marks=True, joined=False))
  lines.append(Line('verified', charts.CERTIFIED, x, curve(verified), interval(verified),
                    marks=True))
  return Chart('bound', 'Accuracy', label, lines, (0, 1), percent=True, size=(520, 340))


def sandwich_line(log, images) -> Line:
  """Verified accuracy of the network itself, beside that of its smoothed classifier in l2.

  Args:
    log: the bound log, in l2.
    images: the indices of the images of the other lines.
  """
  others = '' if {*log.idx.tolist()} == {*images.tolist()} else f' ({len(log.idx):,} images)'
  verified = analysis.robust_interval(log)[0]
  return Line(f'without noise, verified{others}', 'c7', np.concatenate([[0.], log.epsilons]),
              np.concatenate([[np.mean(log.predict == log.label)], verified]), steps=True)


def _other(log, attack):
  """Accuracy under another attack at each radius, NaN where it was not made; None without one."""
  if not analysis.is_same_network(log, attack) or attack.header['attack'].get('name') == 'pgd' or (
      not {*log.idx.tolist()} <= {*attack.idx.tolist()}):
    return None
  robust = analysis.robust(analysis.on_images(attack, log.idx)).mean(axis=0)
  found = np.full(log.epsilons.shape, np.nan)
  for j, epsilon in enumerate(log.epsilons):
    same = np.flatnonzero(np.isclose(attack.epsilons, epsilon, rtol=1e-6))
    found[j] = robust[same[0]] if len(same) else np.nan
  return found if np.isfinite(found).any() else None
