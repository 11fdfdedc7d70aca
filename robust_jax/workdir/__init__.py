"""The folder of a run: what is in it, its checkpoints, signals and progress."""

from robust_jax.workdir.checkpoint import load
from robust_jax.workdir.folder import (
    LOCK,
    OUTPUTS,
    REDO,
    add_time,
    begin,
    check,
    describe,
    environment,
    locked,
    now,
    read_json,
    set_aside,
    stages,
    write_bytes,
    write_json,
)

__all__ = ['LOCK', 'OUTPUTS', 'REDO', 'add_time', 'begin', 'check', 'describe', 'environment',
           'load', 'locked', 'now', 'read_json', 'set_aside', 'stages', 'write_bytes',
           'write_json']
