"""Writes the software bill of materials of the pinned installation, as CycloneDX JSON: `sbom.py FILE`.

It contains requirements/runtime.txt and the two distributions of this repository. The index from which a
package was loaded is omitted, because it differs between machines and does not affect the content.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).parents[1]
LOCKED = ROOT / "requirements/runtime.txt"
VERSION = SchemaVersion.V1_6


def sbom() -> str:
    """Returns the document.

    Raises:
        SystemExit: The document is not valid.
    """
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", str(LOCKED), "--output-reproducible"]
    command += ["--spec-version", VERSION.to_version(), "--pyproject", str(ROOT / "pyproject.toml")]
    # The command warns that the dependencies of the root are unknown; they are added below.
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    document: dict[str, Any] = json.loads(made.stdout)

    client = _project(ROOT / "clients/python")
    locked = document["components"] + [
        {"name": "storeapi", "purl": f"pkg:pypi/storeapi@{client['version']}", "version": client["version"]}
    ]
    components = [
        {
            "type": "library",
            "bom-ref": it["purl"],
            "name": it["name"],
            "version": it["version"],
            "purl": it["purl"],
        }
        for it in sorted(locked, key=lambda it: str(it["name"]))
    ]
    ref_of = {it["name"]: it["bom-ref"] for it in components}
    server = _project(ROOT)
    direct = {
        ref_of[_name(it)]
        for group in (server["dependencies"], *server["optional-dependencies"].values())
        for it in group
        if _name(it) in ref_of
    }
    document["components"] = components
    for tool in document["metadata"]["tools"]["components"]:
        tool.pop("externalReferences", None)
    root = document["metadata"]["component"]
    root["type"] = "application"
    document["dependencies"] = [
        {"ref": root["bom-ref"], "dependsOn": sorted(direct)},
        {"ref": ref_of["storeapi"], "dependsOn": sorted(ref_of[_name(it)] for it in client["dependencies"])},
    ]

    text = json.dumps(document, indent=2) + "\n"
    mistake = JsonStrictValidator(VERSION).validate_str(text)
    if mistake is not None:
        raise SystemExit(f"not valid: {mistake}")
    return text


def _project(folder: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return project


def _name(requirement: str) -> str:
    """Returns the normalized name in a requirement such as `psycopg[binary]>=3.2`."""
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    document = sbom()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(document)
    print(f"{target}: {document.count('bom-ref') - 1} components")
