"""What a training leaves on the disk: run folder, checkpoints and weights."""
