"""The page of a run: the figures, charts and pictures of a workdir put into page.html."""

import shlex
from html import escape

import numpy as np

from robust_jax import analysis
from robust_jax.report import gallery, groups, markup, plots, results
from robust_jax.report.contents import Contents


def render(run: Contents, tables) -> str:
  """The HTML of the page.

  Args:
    run: what the run has left.
    tables: {file name: (caption, table)}, of `results.tables`.
  """
  learnt = [] if run.radii is None else [
      ('radii', 'Radii of the training images', _radii(run, tables))]
  sections = [
      ('robustness', 'Robustness', _robustness(run, tables)),
      ('gallery', 'Adversarial examples', _gallery(run)),
      ('training', 'Training', _training(run, tables)),
      *learnt,
      ('soundness', 'What the figures say, and what they do not', _soundness(run)),
      ('provenance', 'How it was made', _provenance(run)),
  ]
  return markup.page(title(run), _facts(run), _headline(run, tables)
                     + ''.join(markup.section(*section) for section in sections))


def title(run: Contents) -> str:
  """Network, dataset and method in a phrase."""
  model = _name(run.record.get('model'), run.config.get('model'))
  dataset = _name(run.record.get('dataset'), run.config.get('data'))
  method = _name(run.config.get('method'))
  phrase = f'{model or "A network"} on {dataset or "unnamed data"}'
  return f'{phrase}, {method} training' if method and run.metrics['train'] else phrase


def _name(*sections):
  for section in sections:
    name = section.get('name') if isinstance(section, dict) else section
    if name:
      return str(name)
  return ''


def _facts(run):
  dataset, model = run.record.get('dataset', {}), run.record.get('model', {})
  sigma = run.sigma
  facts = [f'smoothed with Gaussian noise σ = {sigma:g}'] if sigma else []
  if run.config and not sigma:
    facts.append('not smoothed')
  if 'num_params' in model:
    facts.append(f'{model["num_params"]:,} parameters')
  if 'num_classes' in dataset:
    facts.append(f'{dataset["num_classes"]} classes')
  if 'image_shape' in dataset:
    facts.append(f'images {"×".join(map(str, dataset["image_shape"]))}')
  if 'device' in run.record:
    facts.append(results.device_text(run))
  started = run.stages.get('train', {}).get('started') or run.record.get('started')
  if started:
    facts.append(f'started {markup.date(started)}')
  return facts


def _headline(run, tables):
  figures = results.key_figures(run)
  if not figures:
    return _missing(run, 'Nothing has been measured yet', 'train')
  tiles = ''.join(
      f'<div><dl><dt>{_unbroken(figure.name)}</dt><dd>{escape(figure.value)}</dd>'
      f'<dd>{escape(figure.note)}</dd></dl></div>' for figure in figures)
  return f'<div class="headline">{tiles}</div>{_files("summary", tables)}'


def _unbroken(name):
  name = escape(name).replace(' ε = ', '&nbsp;ε&nbsp;=&nbsp;')
  return name.replace('ℓ₂ radius ', 'ℓ₂&nbsp;radius&nbsp;')


# Robustness.


def _robustness(run, tables):
  log, attack = run.certified, run.attack
  certified = log is not None and len(log.idx) > 0
  attacked = attack is not None and len(attack.idx) > 0
  empirical = _attack_series(attack) if attacked else None
  # Only an attack on the same classifier in the same norm bounds the certificates from above.
  comparable = (certified and attacked and attack.header.get('smoothed')
                and attack.header.get('attack', {}).get('norm') == 'l2'
                and attack.header.get('sigma') == log.settings.get('sigma'))
  parts, charts, listed = [], [], []
  if certified:
    lines = [_certified_series(log)] + ([empirical] if comparable else [])
    charts.append(_accuracy_chart(lines, 'Accuracy', 'ℓ₂ radius of the perturbation')
                  + _reading(log, comparable))
    listed.append(_table('certified', tables))
    parts.append(_unfinished(run, 'certify', len(log.idx)) + _environments(log))
  elif run.sigma or not run.config:
    parts.append(_missing(run, 'No certificates yet', 'certify'))
  if attacked:
    name = results.attack_name(attack)
    charts.append(('' if comparable else _accuracy_chart(
        [empirical], f'Accuracy under {name}', results.epsilon_axis(attack)[1]))
        + _attack_words(attack))
    listed.append(_table('attack', tables))
    parts.append(_unfinished(run, 'attack', len(attack.idx)))
  else:
    parts.append(_missing(run, 'Not attacked yet', 'attack'))
  beside = markup.beside(''.join(charts), ''.join(listed)) if charts else ''
  return beside + ''.join(parts)


def _accuracy_chart(lines, title, x_label):
  end = 1.04 * max(line.x.max() for line in lines) or 1.0
  return plots.chart(lines, title=title, x_label=x_label, y_limits=(0, 1), x_limits=(0, end),
                     percent=True, width=520, height=340)


def _certified_series(log):
  grid = analysis.decided_radii(log)
  radii = np.unique(log.radius[log.correct]) if grid is None else grid
  if len(radii) > plots.MAX_POINTS:
    radii = np.linspace(0, radii[-1], plots.MAX_POINTS)
  radii = np.unique(np.concatenate([[0.0], radii]))
  accuracies = analysis.certified_accuracy(log, radii)
  low, high = analysis.accuracy_interval(accuracies, len(log.idx))
  if grid is None:  # Beyond the largest radius nothing is certified.
    radii = np.append(radii, radii[-1] + 1e-9)
    accuracies, low, high = (np.append(values, 0.0) for values in (accuracies, low, high))
  return plots.Series('certified (95% band)', 'certified', radii, accuracies, (low, high),
                      steps=True)


def _attack_series(attack):
  epsilons, accuracies = results.attack_curve(attack)
  return plots.Series(
      f'under {results.attack_name(attack)}', 'attack',
      epsilons * results.epsilon_axis(attack)[0], accuracies,
      analysis.accuracy_interval(accuracies, len(attack.idx)), marks=True)


def _reading(log, comparable):
  settings = log.settings
  most = '' if settings.get('name', 'fixed') == 'fixed' else 'at most '
  draws = f'{most}{settings["n"]:,} draws an image, α = {settings["alpha"]:g}. '.capitalize() if (
      {'n', 'alpha'} <= settings.keys()) else ''
  text = ('<b>Certified</b>: the share of images for which the smoothed classifier is right, '
          'with the certificate that no perturbation of that ℓ₂ norm changes its answer. ' + draws)
  if comparable:
    text += ('<b>Under attack</b>: the share still right after an attack of that size. The true '
             'robust accuracy lies between the two, up to sampling.')
  return f'<p class="soft">{text}</p>'


def _attack_words(attack):
  header = attack.header
  target = 'smoothed classifier' if header.get('smoothed') else 'classifier'
  name, norm = results.attack_name(attack), results.norm(attack)
  details = {key: value for key, value in header.get('attack', {}).items()
             if key not in ('name', 'norm') and value is not None}
  listed = ', '.join(f'{key} {markup.text(value)}' for key, value in details.items())
  return (f'<p class="soft"><b>{escape(name)}</b> on the {target} in {escape(norm)}, '
          f'{len(attack.idx):,} images{escape(": " + listed if listed else "")}. An image counts '
          'at ε if it is right without attack and at every smaller ε measured; dots are '
          'measured, whiskers are 95% intervals, the line between is a guide to the eye.'
          + (' Where the sampled vote abstains, the image counts as wrong.'
             if header.get('smoothed') else '') + '</p>')


def _environments(log):
  if len(log.environments) < 2:
    return ''
  return (f'<p class="note">The certificates were made in {len(log.environments)} environments, '
          'one after the other (all in certify.jsonl). Votes may differ between them where logits '
          'differ in the last bits.</p>')


# Gallery and training.


def _gallery(run):
  arrays = run.gallery
  if arrays is None or not len(arrays['images']):
    return _missing(run, 'No adversarial examples yet', 'attack')
  cards, factor = gallery.gallery(arrays, run.record.get('dataset', {}).get('class_names') or [])
  epsilon, norm = float(arrays['epsilon']), results.norm_text(str(arrays['norm']))
  strength = 'as they are' if factor == 1 else f'{factor:g} times as strong'
  words = (f'Perturbations of {escape(norm)} norm at most {results.epsilon_text(epsilon)}, drawn '
           f'{strength} around mid-grey: grey is no change, lighter is more, darker is less. '
           'Images that the attack broke come first; the table above has the share of those it '
           'did not. Below each image the predicted class: '
           '<span class="right">✓ right</span>, <span class="wrong">✗ wrong</span>.')
  return f'<p class="soft">{words}</p>{cards}'


def _training(run, tables):
  train, test = run.metrics['train'], run.metrics['test']
  if not train and not test:
    return _missing(run, 'No training metrics yet', 'train')
  places = {'split', 'step', 'epoch', 'images_per_second'}
  names = {name for row in train + test for name, value in row.items()
           if isinstance(value, int | float) and name not in places}
  first = [name for name in ('loss', 'accuracy', 'learning_rate') if name in names]
  x_name = 'epoch' if all('epoch' in row for row in train + test) else 'step'
  limits = 0, max(row[x_name] for row in train + test)
  charts = ''.join(
      plots.chart([_metric('train', train, name, x_name), _metric('test', test, name, x_name)],
                  title=name.replace('_', ' ').capitalize(), x_label=x_name,
                  x_limits=limits, percent=name.endswith('accuracy'))
      for name in first + sorted(names - set(first)))
  thinned = len(train) > plots.MAX_POINTS
  words = (f'<p class="soft">Each point of a training curve is a mean over '
           f'{len(train) / plots.MAX_POINTS:.0f} logged values or so.</p>' if thinned else '')
  if train and test:
    words += ('<p class="soft">Train: on what the method trains on, such as attacked and noisy '
              'copies. Test: the network itself on test images, under one draw of the noise, not '
              'attacked.</p>')
  words += _unfinished(run, 'train')
  return (f'<div class="charts">{charts}</div>{words}<details><summary>Table</summary>'
          f'{_table("training", tables)}</details>')


def _metric(split, rows, name, x_name):
  rows = [row for row in rows if row.get(name) is not None]
  x, y = plots.average([row[x_name] for row in rows], [row[name] for row in rows])
  return plots.Series(split, split, x, y, marks=split == 'test' and len(x) <= 30)


# Radii that training has learnt.


def _radii(run, tables):
  radius, norm = run.radii['radius'], str(run.radii['norm'])
  scale, unit = results.radii_unit(run)
  counts, edges = np.histogram(scale * radius, bins=24)
  outline = np.concatenate([[0], counts, [0]])
  chart = plots.chart(
      [plots.Series('training images', 'train', np.append(edges, edges[-1]), outline,
                    (np.zeros(len(outline)), outline), steps=True)],
      title='Training images',
      x_label=f'{results.norm_text(norm)} radius{unit}',
      width=520, height=300, with_legend=False)
  words = ('How far each training image is attacked, learnt in training: the radius grows where '
           'the network withstands the attack and shrinks where it does not. All of them: '
           'radii.npz beside this page.')
  at_zero = f'{results.percent(np.mean(radius == 0))} of the images have radius 0.'
  pictures = gallery.radii(run.radii, run.record.get('dataset', {}).get('class_names') or [],
                           lambda value: f'{scale * value:.3g}' + ('/255' if unit else ''))
  return (markup.beside(f'{chart}<p class="soft">{words} {at_zero}</p>', _table('radii', tables))
          + pictures)


# Soundness and provenance.


def _soundness(run):
  notes = []
  log, attack = run.certified, run.attack
  if log and len(log.idx):
    alpha = log.settings.get('alpha')
    if alpha:
      notes.append(
          f'The confidence of a certificate is <b>per image</b>: each is false with probability '
          f'at most α = {alpha:g}. Of the {len(log.idx):,} certificates here, at most '
          f'{len(log.idx) * alpha:.3g} are expected to be false.')
    arithmetic = (
        'The noise is drawn in whole 255ths and added without rounding, so the certificates, for '
        '8-bit images, do not suffer from floating-point arithmetic (Voráček &amp; Hein 2022).'
        if log.settings.get('noise') == 'integer' else
        'The noise and the network are in float32, while the theorem speaks of real numbers; such '
        'a certificate is not a formal proof (Voráček &amp; Hein 2022).')
    if analysis.decided_radii(log) is not None:
        notes.append('Only the radii of a grid were tested. Every certified radius is rounded down '
                     'to one of them, so the average is a lower bound.')
    notes += [
        f'The statistics are exact and in float64. {arithmetic}',
        'A certificate speaks of the smoothed classifier with this noise, network, precision and '
        'batch shape, in ℓ₂, with pixels in [0, 1]. It says nothing about other norms.']
  if run.verified:
    notes.append(_verified(run.verified))
  if attack and len(attack.idx):
    notes.append('Accuracy under attack is an <b>upper bound</b> of robust accuracy, up to the '
                 'sampling of votes: a stronger attack may find more.')
    same_norm = attack.header.get('attack', {}).get('norm') == 'l2'
    if same_norm and log and len(log.idx) and (
        not np.array_equal(np.sort(log.idx), np.sort(attack.idx))):
      notes.append(f'The attack saw {len(attack.idx):,} images and the certification '
                   f'{len(log.idx):,}, not the same ones: the two curves may cross by chance.')
  notes.append('Intervals are Clopper–Pearson at 95%, over the choice of test images, each point '
               'for itself; not over training runs.')
  return f'<ul>{"".join(f"<li><p>{note}</p></li>" for note in notes)}</ul>'


def _verified(record):
  """A sentence on what `--stages=verify` has found."""
  words = (f'On {markup.date(record["finished"])} {record["images"]:,} certificates were computed '
           f'anew from their counts, and {record["drawn_again"]:,} of them drawn for again: ')
  found = [f'{len(record[name])} are not as {where}' for name, where in (
      ('problems', 'logged'), ('problems_in_table', 'in the table')) if record[name]]
  return escape(words + (f'{" and ".join(found)} (verify.json).' if found else
                         'all are as logged.'))


def _provenance(run):
  record = run.record
  parts, places = [], ('started', 'finished')
  if run.stages:
    rows = [[name, stage.get('status'), *(markup.date(stage.get(at)) for at in places),
             results.duration(stage['seconds']) if stage.get('seconds') is not None else None]
            for name, stage in run.stages.items()]
    parts.append(markup.table(analysis.Table(
        ['stage', 'status', 'started', 'finished', 'time'], rows), 'Stages'))
  if 'command' in record:
    parts.append(f'<h3>Command</h3><pre>{escape(record["command"])}</pre>')
  versions = [*record.get('versions', {}).items(),
              *((key, record[key]) for key in ('platform', 'device', 'num_devices', 'flags')
                if record.get(key))]
  if versions:
    parts.append('<details><summary>Versions and machine</summary>' + markup.table(
        analysis.Table(['what', 'value'], [[key, markup.text(value)] for key, value in versions]))
        + '</details>')
  if run.config:
    parts.append('<details><summary>Configuration</summary>' + markup.table(
        analysis.Table(['field', 'value'], [
            [field, markup.text(value)] for field, value in groups.flat(run.config).items()]))
        + '</details>')
  return ''.join(parts) or _missing(run, 'No record of a run', 'train')


# Small parts.


def _missing(run, words, stage):
  return (f'<p class="missing">{escape(words)}. To run it: '
          f'<code>{escape(_command(run, stage))}</code></p>')


def _unfinished(run, stage, num_images=None):
  if run.stages.get(stage, {}).get('status', 'done') == 'done':
    return ''
  done = '' if num_images is None else f' ({num_images:,} images so far)'
  return (f'<p class="note">The {stage} stage is not finished{done}. To go on: '
          f'<code>{escape(_command(run, stage))}</code></p>')


def _command(run, stage):
  """What runs a stage of a run by the config that its workdir holds."""
  return f'python -m launch --workdir={shlex.quote(str(run.path))} --stages={stage}'


def _table(name, tables):
  caption, table = tables[name]
  return markup.table(table, caption) + _files(name, tables)


def _files(name, tables):
  return markup.files(name, tables[name][1], folder='tables/')
