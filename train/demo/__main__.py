"""`make demo`: speech becomes a store, the store trains an adapter, and the adapter is evaluated.

The encoder and the recorded speech come inside the package moonshine-voice, the speech to learn from inside this one.
Everything printed is computed in this run; where a promise does not hold the demo fails.
"""

import shutil
import sys
import time
from pathlib import Path

from encodeonce.train.demo.features import make_store
from encodeonce.train.demo.learning import train_adapter
from encodeonce.train.demo.steps import DemoError


def main() -> None:
    """Run the demo in a folder."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    begun = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        make_store(folder)
        train_adapter(folder)
    except DemoError as error:
        sys.exit(f"demo failed: {error}")
    print(f"\nAll of it took {time.perf_counter() - begun:.0f} s. Now with your own speech:")
    print("  .venv/bin/extract-features --encoder hubert-large --split train-clean-100")
    print("  .venv/bin/train-adapter --list-recipes")
    print("  .venv/bin/evaluate-adapter runs/RECIPE --split dev-clean")


if __name__ == "__main__":
    main()
