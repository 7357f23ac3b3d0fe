"""The numbers of an evaluation: one file a metric, each score with the signature that makes it comparable."""
