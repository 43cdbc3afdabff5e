"""Training: the step, its optimiser and flat buffers, the loop round it, and how a run resumes."""
