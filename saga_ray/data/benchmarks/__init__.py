"""The four benchmarks: where they are to be had, how their copies are laid out, and which classes train."""
