"""Where tensors go: shards, files written in place, and one rename that publishes them."""
