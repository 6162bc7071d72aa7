"""The training core: losses, the step, the loop, checkpoints and evaluation; runs in one process or under any RunContext."""
