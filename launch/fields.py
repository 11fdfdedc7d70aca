"""The fields of an experiment's config, with their values and what they mean: --help=fields."""

import textwrap

from robust_jax import schema
from robust_jax.config.sections import SECTIONS, TABLES, ExperimentSettings, find
from robust_jax.errors import UserError, suggest


def listing(config, wanted='fields'):
  """What --help=WANTED prints.

  Args:
    config: the ConfigDict of an experiment.
    wanted: 'fields', for all of them, or a section or field, as 'train' or 'method.attack'.

  Raises:
    UserError: there is no such section or field.
  """
  settings = {name: config[name] for name in ExperimentSettings._fields}
  entries = _entries('', settings, ExperimentSettings)
  for name, section in SECTIONS.items():
    entries += _entries(f'{name}.', config[name], section)
  for kind in TABLES:
    entries += _component(f'{kind}.', kind, config[kind])
  path = '' if wanted == 'fields' else wanted.removeprefix('config.')
  found = [text for name, text in entries if not path or f'{name}.'.startswith(f'{path}.')]
  if not found:
    names = ['fields', *SECTIONS, *TABLES]
    raise UserError(f'--help must be {", ".join(names)} or a field, got {wanted!r}'
                    + suggest(path, [*names, *dict(entries)]))
  return '\n'.join(found)


# Kinds whose functions may be the user's own.
_OWN = dict.fromkeys(('model', 'method', 'attack'), ', or package.module:name')


def _component(path, kind, values):
  name = f'{path}name'
  names = ', '.join(TABLES[kind]) + _OWN.get(kind, '')
  choice = f'  --config.{name}={values.name}  (one of {names})'
  return [(name, textwrap.fill(choice, 98, subsequent_indent=6 * ' '))] + _entries(
      path, values, find(kind, values.name))


def _entries(path, values, function):
  """[(dotted name, text)] of the fields of a function whose section has `values`."""
  entries, texts = [], schema.descriptions(function)
  for name, field in schema.fields(function).items():
    value = values.get(name)
    if hasattr(value, 'items'):
      entries += _component(f'{path}{name}.', 'attack', value)
      continue
    shown = f'  --config.{path}{name}={value}'
    entries.append((f'{path}{name}', '\n'.join(
        [textwrap.fill(f'{shown}  ({schema.describe(field.hint)})', 98,
                       subsequent_indent=6 * ' '),
         *textwrap.wrap(texts.get(name, ''), 98, initial_indent=6 * ' ',
                        subsequent_indent=6 * ' ')])))
  return entries
