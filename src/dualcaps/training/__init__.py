"""Training: the loop, one step, callbacks, optimizers and schedules."""
