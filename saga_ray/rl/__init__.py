"""Rewards and policy losses: tensors in, tensors out."""
