"""Published experiments on several trained networks, made of a finished sweep.

A config file names one as its STUDY. Each is a module with STAGES, what its runs do unless
--stages says otherwise; check(configs), which raises UserError before any of them runs; and
compare(folder of the sweep, number of devices), which returns the path of a page and a summary for
the terminal.
"""
