"""Judging a vocabulary: what its attributes tell, what they cost, and whether they are named rightly."""
