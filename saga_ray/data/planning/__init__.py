"""Which images meet in which micro-batch, and the stream of those."""
