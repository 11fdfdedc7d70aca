"""From a config to a run: `schema`, then `sections`, then `experiment`."""
