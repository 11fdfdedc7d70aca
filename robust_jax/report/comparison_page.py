"""The page of several runs: their figures in one table, their curves in the same charts."""

import os
from html import escape
from urllib.parse import quote

from robust_jax import analysis
from robust_jax.report import (
    comparison,
    comparison_charts,
    comparison_tables,
    markup,
    plots,
    results,
)

# With more configs than this, one legend stands above all charts, and the runs are folded away.
_MANY = 6


def render(panels, output) -> str:
  """The HTML of the page.

  Args:
    panels: from `comparison.compare`.
    output: path of the page; its tables lie beside it, and runs are linked from there.
  """
  stem = output.stem
  apart = '' if len(panels) == 1 else (
      '<p class="note">The runs are on different datasets, which are not compared: each dataset '
      'has its own tables and charts.</p>')
  body = ''.join(_panel(panel, file_name(panel, panels, stem), i if len(panels) > 1 else None)
                 for i, panel in enumerate(panels))
  return markup.page(f'Comparison of {comparison.title(panels)}', _facts(panels),
                     apart + body + markup.section(
                         'soundness', 'What the figures say, and what they do not',
                         _soundness(panels)) + markup.section(
                             'runs', 'The runs', _runs(panels, output.parent)))


def file_name(panel, panels, stem) -> str:
  """The name of a panel's files: of several, each has its dataset's name."""
  if len(panels) == 1:
    return stem
  return f'{stem}_{"".join(c if c.isalnum() else "_" for c in panel.dataset) or "unnamed"}'


def _facts(panels):
  facts = []
  for panel in panels:
    of = f' of {panel.dataset or "unnamed data"}' if len(panels) > 1 else ''
    for logs, what in ((panel.certified, 'certified'),
                       (_merged(panel.attacks.values()), 'attacked')):
      sizes = {len(log.idx) for row in logs for log in row if log is not None}
      if len(sizes) == 1:
        facts.append(f'{sizes.pop():,} images{of} {what}')
  return facts


def _merged(attacks):
  return [row for logs in attacks for row in logs]


def _panel(panel, stem, number):
  """The sections of a dataset; of several datasets the number-th, of one None."""
  tables = comparison_tables.tables(panel)
  styles = [plots.palette(i) for i in range(len(panel.groups))]

  def section(name, title, content):
    if number is None:
      return markup.section(name, title, content)
    return markup.section(f'{name}-{number}', f'{title} on {panel.dataset or "unnamed data"}',
                          content)

  def table(name):
    if name not in tables:
      return ''
    caption, values = tables[name]
    return markup.table(values, caption, style='wide') + markup.files(f'{stem}_{name}', values)

  notes = ''.join(f'<p class="note">{escape(note)}</p>' for note in panel.notes)
  caption, values = tables['figures']
  figures = (markup.table(values, caption, styles, style='wide')
             + markup.files(stem, values, folder=''))
  runs = table('runs')
  if len(panel.groups) > _MANY:
    runs = runs and f'<details><summary>Every run</summary>{runs}</details>'
  parts = [section('figures', 'Figures', notes + figures + _words(panel, tables)
                   + table('differences') + runs)]
  legend = '' if len(panel.groups) <= _MANY else '<p class="legend">' + plots.legend(
      (group.label, style) for group, style in zip(panel.groups, styles)) + '</p>'
  looks = {'with_legend': not legend}
  charts = comparison_charts.robustness(panel, styles, looks)
  if charts:
    parts.append(section('robustness', 'Robustness', legend
                         + f'<div class="charts large">{charts}</div>{_thin_lines(panel)}'))
  charts = comparison_charts.training(panel, styles, looks)
  if charts:
    words = ('<p class="soft">Train: on what the method trains on, so that losses of different '
             'methods do not compare. Test: the network itself on test images, under one draw of '
             'its noise, not attacked.</p>')
    parts.append(section('training', 'Training', legend +
                         f'<div class="charts large">{charts}</div>{words}'))
  own = table('own_fields')
  own = own and f'<details><summary>Fields that only some of them have</summary>{own}</details>'
  if table('fields') or own:
    parts.append(section('fields', 'What differs', table('fields') + own))
  return ''.join(parts)


def _words(panel, tables):
  titles = [column.title for column in panel.columns]
  words = []
  if 'clean' in titles:
    words.append('<b>Clean</b>: right without attack; an abstention counts as wrong.')
  elif 'test' in titles:
    words.append('<b>Test</b>: the network itself on the whole test split, under one draw of its '
                 'noise.')
  if panel.attacks:
    words.append(f'<b>{escape(", ".join(panel.attacks))}</b>: accuracy under this attack at each '
                 'ε, an upper bound of robust accuracy.')
  if 'ACR' in titles:
    words.append('<b>Certified</b>: correct, with a certified ℓ₂ radius of at least this. '
                 '<b>ACR</b>: the mean certified radius, wrong answers as zero.')
  if 'differences' in tables:
    words.append('The largest mean of a column is bold, unless all are equal; whether it is larger '
                 'by more than chance is in the table of differences.')
  return f'<p class="soft">{" ".join(words)}</p>' if words else ''


def _thin_lines(panel):
  if all(len(group.runs) == 1 for group in panel.groups):
    return ''
  return '<p class="soft">Thick lines are means over seeds, thin lines the single runs.</p>'


def _soundness(panels):
  every = [group for panel in panels for group in panel.groups]
  notes = []
  if any(len(group.runs) > 1 for group in every):
    notes.append('“±” after a figure of several runs is a 95% interval of the mean over '
                 '<b>training runs</b> that differ in their seed (Student’s t), on these test '
                 'images. With two or three runs it is wide because so little is known.')
  if any(len(group.runs) == 1 for group in every):
    notes.append('A config with one run has no interval: what another seed would give is not '
                 'known.')
  if len(every) > len(panels):
    notes.append('Differences over <b>training runs</b> are Welch’s, for two means with '
                 'variances of their own. Differences over <b>images</b> are paired, image by '
                 'image, for these networks as they are: another training may turn them round.')
    notes.append('Each interval is for itself: of twenty differences that are none, one is '
                 'expected to seem so.')
  if any(log is not None for panel in panels for row in panel.certified for log in row):
    notes.append('Certificates hold with probability 1 − α for each image, in ℓ₂; what one says, '
                 'and what not, is on the page of the run.')
  return f'<ul>{"".join(f"<li><p>{note}</p></li>" for note in notes)}</ul>'


def _runs(panels, folder):
  rows, links, commands = [], [], []
  every = [group for panel in panels for group in panel.groups]
  for label, run in [(group.label, run) for group in every for run in group.runs]:
    statuses = ', '.join(f'{name} {stage.get("status")}' for name, stage in run.stages.items())
    device = results.device_text(run) if 'device' in run.record else None
    rows.append([str(run.path), label, markup.text(run.config.get('seed', '')), statuses,
                 device, run.record.get('versions', {}).get('robust_jax')])
    if (run.path / 'report.html').exists():
      address = os.path.relpath(run.path / 'report.html', folder)
      links.append(f'<a href="{quote(address)}">{escape(str(run.path))}</a>')
    if 'command' in run.record:
      commands.append(run.record['command'])
  listed = ''.join(f'<pre>{escape(command)}</pre>' for command in dict.fromkeys(commands))
  return markup.table(analysis.Table(
      ['workdir', 'config', 'seed', 'stages', 'device', 'version'], rows), style='wide') + (
          f'<p>The page of each: {" · ".join(links)}</p>' if links else '') + (
          f'<details><summary>Commands</summary>{listed}</details>' if commands else '')
