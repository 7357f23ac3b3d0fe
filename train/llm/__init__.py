"""The frozen language model: loading it, prompting it, its loss and what it writes."""
