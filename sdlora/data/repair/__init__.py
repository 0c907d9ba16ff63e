"""Changes to a data set that can be taken back byte for byte."""
