"""What is wrong with a dataset, found before the run. `check.check` gives the report."""
