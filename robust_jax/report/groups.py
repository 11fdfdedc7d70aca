"""Runs by what their configs differ in: the seeds of one config together, with a short name."""

import json
import os
from typing import NamedTuple

from robust_jax.config.sections import FREE_FIELDS, flat
from robust_jax.report import pages
from robust_jax.report.contents import Contents

# A label has this many fields where fewer tell the groups apart.
_LABEL_FIELDS = 3


class Group(NamedTuple):
  """The runs of one config.

  Attributes:
    label: its folder's name, or what the names of several have in common. Of a sweep, whose
      folders have numbers, what tells it from the other groups, short.
    runs: list of `Contents`, one a seed.
    config: {dotted field: value} without the seed and what changes no result.
  """

  label: str
  runs: list[Contents]
  config: dict


def group(runs) -> list[Group]:
  """The groups of runs, in the order of their first ones.

  A run without a config, or several with one config and one seed, stand alone under the names of
  their folders: their mean would count the same training twice.
  """
  found = {}
  for run in runs:
    key = run.experiment, json.dumps(_deciding(run.config), sort_keys=True)
    found.setdefault(key, []).append(run)
  members = []
  for same in found.values():
    seeds = [run.config.get('seed') for run in same]
    members += [same] if len({*seeds}) == len(same) else [[run] for run in same]
  configs = [_deciding(same[0].config) for same in members]
  swept = [i for i, same in enumerate(members) if same[0].swept]
  of_sweeps = _labels([members[i][0].experiment for i in swept], [configs[i] for i in swept])
  labels = [_common_name(same) for same in members]
  for i, label in zip(swept, of_sweeps):
    labels[i] = label
  # A sweep's points are numbers: the sweep's folder says more.
  names = folder_names([same[0].path.resolve().parent if len(same) > 1 and same[0].swept
                        else same[0].path for same in members])
  labels = [name if not label or labels.count(label) > 1 else label
            for label, name in zip(labels, names)]
  return [Group(*parts) for parts in zip(labels, members, configs)]


def _common_name(runs):
  """What the names of the runs' folders begin with; where that is nothing, the first and last."""
  names = [run.path.resolve().name for run in runs]
  common = os.path.commonprefix(names)
  if len(names) == 1 or common.strip('0123456789_-. '):
    return common.rstrip('_-. ')
  return f'{names[0]} … {names[-1]}'


def differing(configs) -> list[str]:
  """The fields in which flat configs differ, those that name a component first."""
  fields = dict.fromkeys(field for config in configs for field in config)
  differ = [field for field in fields
            if len({repr(config.get(field, fields)) for config in configs}) > 1]
  return sorted(differ, key=lambda field: (not field.endswith('.name'), field.count('.')))


def telling(configs, fields) -> list[str]:
  """Those of the fields, from the first on, that together tell flat configs apart."""
  distinct = lambda chosen: len({repr([config.get(field) for field in chosen])
                                 for config in configs})
  chosen = []
  for field in fields:
    if distinct([*chosen, field]) > distinct(chosen):
      chosen.append(field)
  return chosen


def value_text(field, value) -> str:
  """A field's value for a reader; epsilons in 255ths where they are whole numbers of them."""
  if isinstance(value, list | tuple):
    return ', '.join(value_text(field, each) for each in value)
  if isinstance(value, float) and 'epsilon' in field.rpartition('.')[2]:
    return pages.epsilon(value)
  return pages.text(value)


def folder_names(paths) -> list[str]:
  """The folders' own names; whole paths where two have the same one."""
  names = [path.resolve().name for path in paths]
  return [str(path) if names.count(name) > 1 else name for path, name in zip(paths, names)]


def _deciding(config):
  return {field: value for field, value in flat(config).items()
          if field != 'seed' and field not in FREE_FIELDS}


def _labels(experiments, configs):
  """The experiment's name where there is one, and what tells its configs apart."""
  labels = [''] * len(configs)
  for name in dict.fromkeys(experiments):
    numbers = [i for i, experiment in enumerate(experiments) if experiment == name]
    found = _field_labels([configs[i] for i in numbers])
    for i, label in zip(numbers, found):
      labels[i] = label if not name else f'{name}, {label}' if len(numbers) > 1 else name
  return labels


def _field_labels(configs):
  """A short text for each flat config, from the fields that tell them apart."""
  # What was trained comes first, how it was measured last.
  fields = sorted(differing([config for config in configs if config]), key=lambda field: (
      field.startswith(('attack', 'evaluation', 'certify'))))
  chosen = telling(configs, fields)
  # Fields of one component only, such as a method's own, say nothing beside its name.
  common = [field for field in fields if field not in chosen
            and all(field in config for config in configs)]
  chosen += common[:max(_LABEL_FIELDS - len(chosen), 0)]
  if not fields:
    chosen = ['method.name']
  names = _short_names(chosen, {field for config in configs for field in config})
  return [', '.join(_shown(names[field], field, config[field])
                    for field in fields or chosen if field in names and field in config)
          for config in configs]


def _short_names(chosen, fields):
  """{field: the shortest end of its path that no other of the fields has too}."""
  ends = lambda field: ['.'.join(field.split('.')[i:]) for i in range(field.count('.'), -1, -1)]
  return {field: next(end for end in ends(field) if end == field or not any(
      end in ends(other) for other in fields if other != field)) for field in chosen}


def _shown(name, field, value):
  text = value_text(field, value)
  text = text if len(text) <= 28 else f'{text[:27]}…'
  return text if field.endswith('.name') else f'{name}={text}'
