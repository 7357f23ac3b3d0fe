"""What the queries of an adapter read: cross-attention over time, measured and drawn."""
