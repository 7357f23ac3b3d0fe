"""Tables of others, as they were printed."""
