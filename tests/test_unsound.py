"""Every planted mistake is found by the checks that the project's own certifiers pass.

`planted` has the mistakes, the checks and the certifiers, and prints the figures as a table.
"""

import planted
import pytest


@pytest.mark.parametrize('name', planted.PLANTED)
def test_a_planted_mistake_is_found(name):
  certifier, check = planted.PLANTED[name]
  finding = planted.CHECKS[check](certifier)
  assert finding.unsound, finding.figure


@pytest.mark.parametrize('check', planted.CHECKS)
@pytest.mark.parametrize('name', planted.SOUND)
def test_a_sound_certifier_passes(name, check):
  finding = planted.CHECKS[check](planted.SOUND[name])
  assert not finding.unsound, finding.figure


def test_every_check_finds_something():
  assert {check for _, check in planted.PLANTED.values()} == set(planted.CHECKS)
