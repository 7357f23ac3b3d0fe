"""The error an evaluation raises: it names the thing, the value and the way out."""


class EvaluationError(Exception):
    """A recogniser, a text or a request that cannot be used as asked."""
