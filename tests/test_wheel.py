"""What the wheel holds: the package's own files, and none of the C that Cython writes beside its sources."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIST = """
import json
from setuptools.dist import Distribution
distribution = Distribution({"script_name": "setup.py"})
distribution.parse_config_files(["pyproject.toml"])
command = distribution.get_command_obj("build_py")
command.ensure_finalized()
names = [f"{source}/{name}" for _, source, _, files in command.data_files for name in files]
print(json.dumps(names + [path for _, _, path in command.find_all_modules()]))
"""


def test_no_generated_file_is_shipped() -> None:
    generated = ROOT / "pilot" / "_fast" / "packet.c"
    present = generated.exists()
    if not present:
        generated.write_text("/* stands for what Cython writes */\n")
    try:
        done = subprocess.run([sys.executable, "-c", LIST], cwd=ROOT, capture_output=True, text=True, check=True)
    finally:
        if not present:
            generated.unlink()
    shipped = {name.replace(f"{ROOT}/", "") for name in json.loads(done.stdout)}
    names = {Path(name).name for name in shipped}
    assert {"py.typed", "__init__.py", "packet.pyi", "packet.pxd", "_udp_compat.h"} <= names
    assert {Path(name).suffix for name in names} == {".py", ".pyi", ".pxd", ".h", ".typed"}
