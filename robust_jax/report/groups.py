"""Runs by what their configs differ in: the seeds of one config together, with a short name."""

import json
from typing import NamedTuple

from robust_jax.config.configuration import FREE_FIELDS
from robust_jax.report import results
from robust_jax.report.contents import Contents

# A label has this many fields where fewer tell the groups apart.
_LABEL_FIELDS = 3


class Group(NamedTuple):
  """The runs of one config.

  Attributes:
    label: what tells it from the other groups, short.
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
    found.setdefault(json.dumps(_deciding(run.config), sort_keys=True), []).append(run)
  members = []
  for same in found.values():
    seeds = [run.config.get('seed') for run in same]
    members += [same] if len({*seeds}) == len(same) else [[run] for run in same]
  configs = [_deciding(same[0].config) for same in members]
  labels = _labels(configs)
  names = folder_names([same[0].path for same in members])
  labels = [name if not label or labels.count(label) > 1 else label
            for label, name in zip(labels, names)]
  return [Group(*parts) for parts in zip(labels, members, configs)]


def differing(configs) -> list[str]:
  """The fields in which flat configs differ, those that name a component first."""
  fields = dict.fromkeys(field for config in configs for field in config)
  absent = object()
  differ = [field for field in fields
            if any(config.get(field, absent) != configs[0].get(field, absent)
                   for config in configs)]
  return sorted(differ, key=lambda field: (not field.endswith('.name'), field.count('.')))


def flat(section, prefix='') -> dict:
  """{dotted field: value} of a nested config."""
  values = {}
  for key, value in section.items():
    if isinstance(value, dict) and value:
      values |= flat(value, f'{prefix}{key}.')
    else:
      values[f'{prefix}{key}'] = value
  return values


def value_text(field, value) -> str:
  """A field's value for a reader; epsilons in 255ths where they are whole numbers of them."""
  if isinstance(value, list | tuple):
    return ', '.join(value_text(field, each) for each in value)
  if isinstance(value, float) and 'epsilon' in field.rpartition('.')[2]:
    return results.epsilon_text(value)
  return f'{value:.6g}' if isinstance(value, float) else str(value)


def folder_names(paths) -> list[str]:
  """The folders' own names; whole paths where two have the same one."""
  names = [path.resolve().name for path in paths]
  return [str(path) if names.count(name) > 1 else name for path, name in zip(paths, names)]


def _deciding(config):
  return {field: value for field, value in flat(config).items()
          if field != 'seed' and field not in FREE_FIELDS}


def _labels(configs):
  """A short text for each flat config, from the fields that tell them apart."""
  # What was trained comes first, how it was measured last.
  fields = sorted(differing([config for config in configs if config]), key=lambda field: (
      field.startswith(('attack', 'evaluation', 'certify'))))
  distinct = lambda chosen: len({repr([config.get(field) for field in chosen])
                                 for config in configs})
  chosen = []
  for field in fields:
    if distinct([*chosen, field]) > distinct(chosen):
      chosen.append(field)
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
