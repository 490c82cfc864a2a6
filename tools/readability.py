"""Count what makes the tree hard to read: `python tools/readability.py [CHECKOUT]`.

Prints one figure per line, so that two checkouts can be compared with `diff`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

RELATIVE_CLAUSE = re.compile(r"(What|Whether|Where|Who|Whom|Whose|Whoever|Which|How|When|Why)\b")
VAGUE_LOCALS = ("found", "wanted", "told", "made", "given", "most", "asked", "own", "held", "kept", "left", "looked")
MAX_LINES = 450
MAX_TEST_WORDS = 8
FACTS = {
    "JobState": ("*.py", r"(?m)^class JobState\b", ["states.py"]),
    # snippets.py: in programs that callers copy
    "job states as Python strings": ("*.py", r'"(QUEUED|PROCESSING)"', ["server/web/snippets.py", "states.py"]),
    "BT.601 weights": ("*.py", r"0\.299\b", ["engine/pixels/arrays.py"]),
    "MEBIBYTE": ("*.py", r"(?m)^_?MEBIBYTE\b.*=", ["units.py"]),
    "results/<job>/": ("*.py", r"[\"']results/", ["server/storage_keys.py"]),
    "the version": ("*.py", r"(?m)^__version__", ["__init__.py"]),
    "regexes over English error sentences": ("*.js", r"new RegExp\(", []),
}
"""Files, pattern, and the modules below src/hiresfix that may match."""


def parsed(folder: Path) -> Iterator[tuple[Path, str, ast.Module]]:
    """Every Python file below the folder, migrations left out."""
    for path in sorted(folder.rglob("*.py")):
        if "versions" not in path.parts:
            text = path.read_text(encoding="utf-8")
            yield path, text, ast.parse(text)


def docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            text := ast.get_docstring(node)
        ):
            yield text


def class_names(tree: ast.Module) -> Iterator[str]:
    """Classes and type aliases at the top level, without a leading underscore."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name.lstrip("_")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and re.fullmatch(r"_?[A-Z][a-z]\w*", target.id):
                    yield target.id.lstrip("_")


def assigned(tree: ast.Module) -> Iterator[str]:
    """Names of locals that are assigned in functions."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    yield node.id


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    source = list(parsed(root / "src"))
    tests = list(parsed(root / "tests"))
    folders = Counter(path.parent.relative_to(root / "src").as_posix() for path, _, _ in source)
    print("Modules in the largest folders:", ", ".join(f"{folder} {count}" for folder, count in folders.most_common(4)))
    print(f"Modules above {MAX_LINES} lines:", sum(len(text.splitlines()) > MAX_LINES for _, text, _ in source))
    texts = [text for _, _, tree in source for text in docstrings(tree)]
    print("Docstrings:", len(texts))
    print("Docstrings that open with a relative clause:", sum(bool(RELATIVE_CLAUSE.match(text)) for text in texts))
    print("Lines with who, whom, whose or whoever:", count_lines(source, r"\b[Ww]ho(m|se|ever)?\b"))
    print("Lines with 'is no', 'are no', 'is none':", count_lines(source, r"\b(is|are) no(ne)?\b"))
    print("Lines with picture / image:", count_lines(source, r"(?i)picture"), "/", count_lines(source, r"(?i)image"))
    print("Lines with enlarg / upscal:", count_lines(source, r"(?i)enlarg"), "/", count_lines(source, r"(?i)upscal"))
    print("Lines with knob:", count_lines(source, r"(?i)\bknobs?\b"))
    homes: defaultdict[str, set[Path]] = defaultdict(set)
    for path, _, tree in source:
        for name in class_names(tree):
            homes[name].add(path)
    print("Class and alias names defined in several modules:", sum(len(paths) > 1 for paths in homes.values()))
    names = Counter(name for _, _, tree in source for name in set(assigned(tree)) if name in VAGUE_LOCALS)
    print("Modules times locals without a noun:", sum(names.values()))
    functions = list(test_names(tests))
    long = sum(len(name.split("_")) - 1 > MAX_TEST_WORDS for name in functions)
    print(f"Tests, and those named with more than {MAX_TEST_WORDS} words:", len(functions), long)
    for fact, (files, pattern, _) in FACTS.items():
        print(f"Modules with {fact}:", len(files_with(root / "src", files, pattern)))


def test_names(files: Iterable[tuple[Path, str, ast.Module]]) -> Iterator[str]:
    for _, _, tree in files:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield node.name


def files_with(folder: Path, files: str, pattern: str) -> list[str]:
    """Files that match, by their path in the package."""
    paths = sorted(path for path in folder.rglob(files) if re.search(pattern, path.read_text(encoding="utf-8")))
    return [path.relative_to(folder / "hiresfix").as_posix() for path in paths]


def count_lines(files: list[tuple[Path, str, ast.Module]], pattern: str) -> int:
    return sum(bool(re.search(pattern, line)) for _, text, _ in files for line in text.splitlines())


if __name__ == "__main__":
    main()
