"""Colours of the charts: each with a contrast of more than 3 to white and to nearly black."""

INK = "#0a1b2c"
"""Stands for the page's own text colour, and is replaced by it."""

BLUE, RED, GREEN, PURPLE, AMBER = COLOURS = ("#3f7fcf", "#d9534f", "#2e9360", "#9a6dd7", "#b07a1c")
