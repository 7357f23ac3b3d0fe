"""What adapters are trained for: losses as modules outside the model, each with a name and what a reasonable value is."""
