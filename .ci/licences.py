"""Print the packages of a bill of materials (CycloneDX, JSON) with their licences; fail on one that is not permissive.

python .ci/licences.py favorcast.cdx.json
"""

import json
import re
import sys
from pathlib import Path

PERMISSIVE = re.compile(r"MIT|BSD|Apache|PSF|Python|ISC|Zlib|CC0|HPND|Unlicense|MPL-2\.0|Mozilla Public License 2\.0")
COPYLEFT = re.compile(r"\bA?GPL|\bLGPL|SSPL|EUPL|Affero|GNU .*General Public")
OURS = {"favorcast"}


def licences_of(component: dict) -> list[str]:
    """Return the licences that a component names: expressions, identifiers or names."""
    found = (each.get("expression") or each.get("license", {}) for each in component.get("licenses", []))
    return [each if isinstance(each, str) else each.get("id") or each.get("name", "") for each in found]


def main(path: Path) -> None:
    """Print the list, and say what is not allowed in it."""
    components = json.loads(path.read_text(encoding="utf-8"))["components"]
    refused = []
    for component in sorted(components, key=lambda each: each["name"].lower()):
        licences = licences_of(component)
        named = ", ".join(licences) or "none named"
        print(f"{component['name']} {component['version']}: {named[:100]}")
        is_allowed = all(PERMISSIVE.search(each) and not COPYLEFT.search(each) for each in licences) and licences
        if not is_allowed and component["name"] not in OURS:
            refused.append(f"{component['name']} ({named[:100]})")
    if refused:
        sys.exit(f"expected permissive licences of all that favorcast installs, got {', '.join(refused)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
