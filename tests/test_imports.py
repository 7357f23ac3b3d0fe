"""Who may import whom, and what reading a store must not need."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from streams import frames_of, make_store

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "store": set(),
    "extract": {"store"},
    "train": {"store"},
    "evaluate": {"train", "store", "extract"},
}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_lies_below_them(package):
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name.startswith("encodeonce."):
                    assert name.split(".")[1] in MAY_IMPORT[package] | {package}, f"{path} imports {name}"


def test_reading_a_store_imports_nothing_heavy(tmp_path):
    store = make_store(tmp_path / "s", frames_of(3))
    program = (
        "import sys, encodeonce.store, encodeonce.store.cli\n"
        f"store = encodeonce.store.FeatureStore({str(store.path)!r})\n"
        "store[0].features, store[store.id(1)].text, store.read([0, 1])\n"
        "heavy = {'torch', 'transformers', 'torchaudio', 'soundfile', 'pandas', 'onnxruntime', 'numba', 'sklearn', 'scipy',"
        " 'safetensors', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_module_says_what_it_is_for():
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{path} does not say what it is for"
