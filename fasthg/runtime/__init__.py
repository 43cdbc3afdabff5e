"""The process and the machine it runs on: device, CUDA graphs, process group, signals, settings."""
