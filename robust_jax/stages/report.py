"""The report stage: the page of a run, and its key figures for the terminal."""

from robust_jax import report as reports


def report(run, workdir):
  """Writes report.html and tables/, and prints the summary.

  Args:
    run: not needed, so that a run which is still under way can be looked at: None then.
    workdir: the folder of the run.
  """
  del run
  page = reports.build(workdir)
  print(reports.summary(workdir), f'report: {page}', sep='\n')
