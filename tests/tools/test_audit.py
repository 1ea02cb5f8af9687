"""What `make audit` says of pip-audit's reports."""

import importlib.util
from pathlib import Path

FILE = Path(__file__).parents[2] / "tools" / "audit.py"
SPEC = importlib.util.spec_from_file_location("audit", FILE)
assert SPEC is not None
assert SPEC.loader is not None
audit = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(audit)

SOUND = {"name": "numpy", "version": "2.4.6", "vulns": []}
KNOWN = {"name": "pillow", "version": "9.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["9.1"]}]}
SKIPPED = {"name": "dualcaps", "skip_reason": "Dependency not found on PyPI"}


def test_nothing_found_where_nothing_was_looked_up_is_no_all_clear():
    lines, code = audit.summary({"dependencies": [SKIPPED, SKIPPED]})
    assert code == 2
    assert lines[0].startswith("not audited: none of 2 packages")


def test_vulnerabilities_are_named_and_what_was_skipped_too():
    lines, code = audit.summary({"dependencies": [SOUND, KNOWN, SKIPPED]})
    assert code == 1
    assert lines == [
        "pillow 9.0: PYSEC-1, fixed in 9.1",
        "1 known vulnerabilities in 2 of 3 packages; not looked up: dualcaps",
    ]
    assert audit.summary({"dependencies": [SOUND]}) == (["0 known vulnerabilities in 1 of 1 packages"], 0)
