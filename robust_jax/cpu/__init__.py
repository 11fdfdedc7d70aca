"""What makes XLA on CPU fast."""
