"""The errors that the launcher turns into one line and an exit status."""

import difflib

TRY_AGAIN = 75
"""Exit status EX_TEMPFAIL: what was done is kept, and the same command goes on."""


class UserError(ValueError):
  """Something a person can mend: a field, a file or a folder.

  The message is one line that names the field or file, the value, and what is valid.
  """

  exit_status = 2


class NotMetError(UserError):
  """The processes of a run have not met in time: one may have begun late, so try again."""

  exit_status = TRY_AGAIN


class TrainingError(ArithmeticError):
  """Training cannot go on as it is; its last checkpoint is kept."""

  exit_status = 3


class NonFiniteLossError(TrainingError):
  """Training met a loss or parameter that is not finite."""


class OverfittingError(TrainingError):
  """The network withstands one step of attack and not several."""


class MismatchError(UserError):
  """What is logged is not what comes out now."""

  exit_status = 4


class CrossingError(UserError):
  """An adversarial example was found within a certificate: one of the two is wrong."""

  exit_status = 5


def choices(field, names, got):
  """That `field` must be one of `names`: the nearest of them or, where none is near, all."""
  near = difflib.get_close_matches(str(got).lower(), list(names), 3)
  if not near:
    return f'{field} must be one of {", ".join(names)}, got {got!r}'
  return (f'{field} must be one of {len(names)} names, got {got!r}; did you mean '
          f'{" or ".join(near)}?')


def suggest(name, names, show=str):
  """'; did you mean X?', where X is `show` of the nearest of `names`; '' if none is near."""
  near = (difflib.get_close_matches(str(name), names, 1)
          or difflib.get_close_matches(str(name).lower(), names, 1))
  return f'; did you mean {show(near[0])}?' if near else ''
