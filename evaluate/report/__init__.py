"""One page that shows how good a system is and where it fails, and the same as Markdown and JSON."""
