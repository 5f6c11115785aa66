"""The pure-PyTorch training loop, optimizers, schedules, checkpoints, meters."""
