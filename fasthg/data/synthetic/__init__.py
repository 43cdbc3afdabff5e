"""Synthetic mice with exact keypoints, for tests and for the demo."""
