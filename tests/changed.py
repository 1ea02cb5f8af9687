"""Print the test files of the source files that differ from the last commit, for `make quick`; all if none does."""

import subprocess
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]


def select_tests(changed: Iterable[str], root: Path = ROOT) -> list[str]:
    """The tests to run after a change.

    Args:
        changed: paths relative to the repository's root.
        root: the repository.

    Returns:
        Test files and folders: a changed test file itself; of a module its own test file, or else the tests of the
        nearest folder that has some. Empty for changes that concern all tests.
    """
    found: set[str] = set()
    for name in changed:
        path = PurePosixPath(name)
        if path.parts[0] == "tests":
            if not path.name.startswith("test_"):
                return []
            if (root / path).is_file():
                found.add(str(path))
        elif path.parts[:2] == ("src", "dualcaps"):
            folder = PurePosixPath("tests", *path.parts[2:-1])
            test = folder / f"test_{path.stem}.py"
            while not (root / test).exists() and not (root / folder).is_dir():
                folder = folder.parent
            if folder == PurePosixPath("tests") and not (root / test).exists():
                return []
            found.add(str(test if (root / test).exists() else folder))
    return sorted(found)


if __name__ == "__main__":
    said = subprocess.run(
        ["git", "status", "--porcelain", "-uall"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    print(*select_tests(line[3:].split(" -> ")[-1] for line in said.stdout.splitlines()))
