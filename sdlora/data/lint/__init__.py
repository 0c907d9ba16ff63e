"""What is wrong with a data set, found before the run. `check.check` gives the report."""
