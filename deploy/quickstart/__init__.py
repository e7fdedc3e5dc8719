"""What `make serve` does: a small model, two sample adapters, and a gateway that serves them."""
