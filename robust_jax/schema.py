"""A function's signature as what its arguments must be, and as the schema of a config section.

The annotated keyword-only arguments of a function (all those of a NamedTuple or dataclass) are its
fields. An annotation gives the type and, by `types.Interval`, the range: `Count`,
`Positive | None`, `tuple[int, ...]`, `Literal['all', 'first']`.
"""

import dataclasses
import functools
import inspect
import re
import types as python_types
import typing
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np

from robust_jax.errors import UserError, suggest
from robust_jax.types import Attack, Interval

_NAMES = {float: 'a number', int: 'an integer', bool: 'True or False', str: 'a string',
          type(None): 'None'}


class Field(NamedTuple):
  """One field: its annotation, and its default (`inspect.Parameter.empty` without one)."""

  hint: Any
  default: Any


@functools.cache
def fields(function):
  """{name: Field} of a function, NamedTuple or dataclass."""
  annotated = function
  if inspect.isclass(function):
    annotated = function.__init__ if dataclasses.is_dataclass(function) else function.__new__
  hints = typing.get_type_hints(annotated, include_extras=True)
  found = {
      name: Field(hints[name], parameter.default)
      for name, parameter in inspect.signature(function).parameters.items()
      if name in hints and (inspect.isclass(function)
                            or parameter.kind is inspect.Parameter.KEYWORD_ONLY)}
  # What a config cannot say, such as a function, is left at its default.
  return {name: field for name, field in found.items()
          if is_known(field.hint) or field.default is inspect.Parameter.empty}


def check_names(path, values, names):
  """Raises UserError unless `values`, the section at `path`, has exactly the `names`."""
  for name in values:
    if name not in names:
      hint = suggest(name, names) or f'; the fields are {", ".join(names) or "none"}'
      raise UserError(f'{path}.{name} is not a field{hint}')
  for name in names:
    if name not in values:
      raise UserError(f'{path}.{name} is missing')


def check_value(path, value, hint):
  """Raises UserError unless `value`, the field at `path`, fits the annotation."""
  if not _fits(value, hint):
    raise UserError(f'{path} must be {describe(hint)}, got {value!r}')


def checked(function):
  """The function, which refuses an argument that does not fit its annotation, as `check_value`.

  A number that comes as an array is handed on as a plain one. Arrays of more than a number are the
  function's own to check, and traced values pass.
  """
  @functools.wraps(function)
  def call(*args, **given):
    for name in given.keys() & fields(function).keys():
      given[name] = check_argument(name, given[name], fields(function)[name].hint)
    return function(*args, **given)
  return call


def check_argument(name, value, hint):
  """`check_value` of an argument, which may be an array; the value, a plain number if it is one."""
  if isinstance(value, jax.core.Tracer) or np.ndim(value) and isinstance(
      value, jax.Array | np.ndarray):
    return value
  if isinstance(value, jax.Array | np.ndarray | np.generic):
    value = value.item()
  check_value(name, value, hint)
  return value


def plain_type(hint):
  """The type of a field that may be None, for a config's placeholder."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if _is_union(origin):
    return plain_type(next(arg for arg in args if arg is not type(None)))
  if origin is Annotated:
    return plain_type(args[0])
  if origin is Literal:
    return type(args[0])
  return tuple if origin is tuple else hint


def _is_union(origin):
  return origin in (typing.Union, python_types.UnionType)


def is_known(hint):
  """Whether a config can have a field of this annotation."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is Annotated:
    return is_known(args[0])
  if _is_union(origin) or origin is tuple:
    return all(arg is Ellipsis or is_known(arg) for arg in args)
  return origin is Literal or hint in _NAMES or hint == Attack


def _fits(value, hint):
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is Annotated:
    return _fits(value, args[0]) and all(value in arg for arg in args if isinstance(arg, Interval))
  if origin is Literal:
    return value in args
  if _is_union(origin):
    return any(_fits(value, arg) for arg in args)
  if origin is tuple:
    return isinstance(value, list | tuple) and all(_fits(entry, args[0]) for entry in value)
  if hint in (int, float):
    return isinstance(value, (int, hint)) and not isinstance(value, bool)
  return isinstance(value, hint)


def descriptions(function):
  """{field: what is said of it}, one paragraph each; '' where nothing is.

  Of a function that is its docstring's Args, of a class the comment above the field.
  """
  if inspect.isclass(function):
    found, comment = {}, []
    for line in map(str.strip, inspect.getsource(function).splitlines()):
      if line.startswith('#'):
        comment.append(line.lstrip('# '))
        continue
      found[line.partition(':')[0]] = ' '.join(comment)
      comment = []
    return {name: found.get(name, '') for name in fields(function)}
  arguments = (inspect.getdoc(function) or '').partition('\nArgs:\n')[2].partition('\n\n')[0]
  entries = re.findall(r'^  (\w[\w, ]*): (.*(?:\n {4}.*)*)', arguments, re.MULTILINE)
  found = {name: ' '.join(text.split()) for names, text in entries for name in names.split(', ')}
  return {name: found.get(name, '') for name in fields(function)}


def describe(hint):
  """What a value of this annotation must be, in words."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is Annotated:
    ranges = [f' in {arg}' for arg in args if isinstance(arg, Interval)]
    return ''.join([describe(args[0]), *ranges])
  if origin is Literal:
    return 'one of ' + ', '.join(map(str, args))
  if _is_union(origin):
    return ' or '.join(map(describe, args))
  if origin is tuple:
    return f'a tuple of {describe(args[0])} each'
  return _NAMES.get(hint, str(hint))
