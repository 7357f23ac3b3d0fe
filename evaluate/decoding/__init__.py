"""From cached features to text: who writes, how it is searched, what is flagged, and the lines that a run leaves."""
