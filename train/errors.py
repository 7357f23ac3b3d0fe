"""What can be wrong with a training."""


class TrainingError(Exception):
    """The request, the configuration or the data of a training is wrong: the message names it, the value and the way out."""
