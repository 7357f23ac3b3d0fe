"""Print docs/published.md."""

from encodeonce.evaluate.published.markdown import document

print(document(), end="")
