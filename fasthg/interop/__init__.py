"""Exchange with other software: TensorFlow checkpoints, MARS projects, exported networks."""
