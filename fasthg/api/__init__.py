"""What `fasthg` offers in Python: `train`, `load`, `convert`, and what they return.

The command line calls the same functions.
"""
