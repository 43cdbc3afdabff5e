"""Accuracy of recipes on small data sets; `python -m benchmarks.accuracy --help`."""
