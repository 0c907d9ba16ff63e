"""Changes to a dataset that can be taken back byte for byte."""
