"""Where tensors come from: names and shapes without data, then one tensor at a time."""
