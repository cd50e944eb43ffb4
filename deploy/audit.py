"""`make audit`: are there known vulnerabilities in what this environment holds? Asks by pip-audit.

Owns what an answer means: pip-audit says "no known vulnerabilities" also where its service knew no package at all.
Exit status 1: there are some; 0: none, or no advisory service answers, and a line says which; 2: pip-audit failed.
Run by the environment that is audited: `python deploy/audit.py PIP_AUDIT`.
"""

import json
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from typing import Any

SERVICES = ("pypi", "osv")
TIMEOUT_S = 600
_AWAY = ("ConnectionError", "Timeout", "ServiceError", "HTTPError", "Could not connect")


def main(pip_audit: str) -> int:
    away = []
    for service in SERVICES:
        done = subprocess.run(
            [pip_audit, "--path", sysconfig.get_path("purelib"), "--vulnerability-service", service,
             "--format", "json", "--progress-spinner", "off"],
            capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        answer = read_answer(done.stdout)
        if answer is not None:
            print(f"{service}: {answer[1]}")
            return answer[0]
        if done.stdout == "" and not any(word in done.stderr for word in _AWAY):
            print(f"pip-audit failed: {done.stderr.strip()}", file=sys.stderr)
            return 2
        away.append(service)
    print(f"not audited: no advisory service answers here ({', '.join(away)}); run make audit where one does")
    return 0


def read_answer(output: str) -> tuple[int, str] | None:
    """(exit status, what to tell) of pip-audit's JSON; None where no package was looked up."""
    try:
        packages: list[Mapping[str, Any]] = json.loads(output)["dependencies"]
    except ValueError:
        return None
    asked = [package for package in packages if "skip_reason" not in package]
    if not asked:
        return None
    found = [_describe(package, flaw) for package in asked for flaw in package["vulns"]]
    unknown = len(packages) - len(asked)
    counts = f"{len(asked)} packages audited" + (f", {unknown} unknown to the service" if unknown else "")
    told = f"{len(found)} known vulnerabilities" if found else "no known vulnerability"
    return (1 if found else 0), "\n".join([f"{counts}, {told}", *found])


def _describe(package: Mapping[str, Any], flaw: Mapping[str, Any]) -> str:
    fixed = ", ".join(flaw["fix_versions"]) or "no version"
    return f"  {package['name']} {package['version']}: {flaw['id']}, fixed in {fixed}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
