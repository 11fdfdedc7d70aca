"""From a config to a run: `sections`, then `experiment`."""
