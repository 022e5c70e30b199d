"""How tensors are named, fused and permuted: data, not code paths. Hugging Face's names are the hub."""
