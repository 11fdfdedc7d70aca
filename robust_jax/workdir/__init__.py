"""The folder of a run: its files, checkpoints, signals and progress."""

from robust_jax.workdir.checkpoint import fingerprint, load
from robust_jax.workdir.folder import (
    LOCK,
    OUTPUTS,
    REDO,
    STOPPED,
    add_time,
    begin,
    certify_beside,
    check_empty_or_run,
    copied,
    describe,
    environment,
    in_use,
    locked,
    now,
    results,
    set_aside,
    share,
    stages,
    versions,
)
from robust_jax.workdir.records import read_json, write_bytes, write_json

__all__ = ['LOCK', 'OUTPUTS', 'REDO', 'STOPPED', 'add_time', 'begin', 'certify_beside',
           'check_empty_or_run', 'copied', 'describe', 'environment', 'fingerprint', 'in_use',
           'load', 'locked', 'now', 'read_json', 'results', 'set_aside', 'share', 'stages',
           'versions', 'write_bytes', 'write_json']
