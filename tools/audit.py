"""Known vulnerabilities of the packages that are installed for this project: `make audit`.

    python tools/audit.py PIP_AUDIT SITE_PACKAGES

Runs pip-audit, which asks the data base of the package index. It says that it found nothing even where it could look
up nothing, so what it could look up is counted here. Exits with 1 if a package has a known vulnerability, and with 2 if
none could be looked up.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def main() -> None:
    """Audit, print, exit."""
    pip_audit, packages = sys.argv[1:]
    command = [pip_audit, "--path", packages, "--format", "json", "--progress-spinner", "off"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report = json.loads(found.stdout)
    except json.JSONDecodeError:
        print(f"not audited: {(found.stderr.strip().splitlines() or ['pip-audit printed nothing'])[-1]}")
        sys.exit(2)
    lines, code = summary(report)
    print("\n".join(lines))
    sys.exit(code)


def summary(report: Mapping[str, Any]) -> tuple[list[str], int]:
    """Lines to print and the exit code for pip-audit's report.

    Example:
        >>> summary({"dependencies": [{"name": "a", "skip_reason": "not found"}]})
        (['not audited: none of 1 packages could be looked up: the data base is not reachable from here'], 2)
    """
    packages = report["dependencies"]
    audited = [package for package in packages if "skip_reason" not in package]
    if not audited:
        why = "the data base is not reachable from here"
        return [f"not audited: none of {len(packages)} packages could be looked up: {why}"], 2
    lines = [
        f"{package['name']} {package['version']}: {known['id']}, fixed in {', '.join(known['fix_versions']) or 'none'}"
        for package in audited
        for known in package["vulns"]
    ]
    skipped = sorted(package["name"] for package in packages if "skip_reason" in package)
    count = f"{len(lines)} known vulnerabilities in {len(audited)} of {len(packages)} packages"
    return [*lines, count + (f"; not looked up: {', '.join(skipped)}" if skipped else "")], int(bool(lines))


if __name__ == "__main__":
    main()
