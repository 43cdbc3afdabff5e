"""Formats of others: TensorFlow checkpoints, MARS projects, exported networks."""
