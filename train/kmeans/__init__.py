"""k-means over stored features: what units are made of."""
