"""Compiles the benchmarks' own Cython module on demand, into a cache named after all that goes into it (bench)."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Final

__all__ = ["build", "load"]

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCE: Final = ROOT / "bench" / "climit.pyx"
NAME: Final = "climit"
FLAGS: Final = ("-O2", "-fno-strict-aliasing", "-Wno-unused-function")
"""Those of the package itself (setup.py)."""


def build() -> Path:
    """The compiled module; built first where it is missing.

    Raises:
        RuntimeError: Cython or a compiler is missing, or the build failed; the message ends with its complaint.
    """
    target = _cache() / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        # A process of its own: setuptools changes much of the process it runs in.
        done = subprocess.run(
            [sys.executable, "-m", "bench.native", str(target.parent)], cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"bench/climit.pyx could not be built: {done.stderr.strip()[-500:]}")
    return target


def load() -> ModuleType:
    """The module, built where it is missing; raises what `build` raises."""
    spec = importlib.util.spec_from_file_location(NAME, build())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _cache() -> Path:
    """A directory that differs with the source, the declarations it compiles against, and the interpreter."""
    digest = hashlib.sha256(sys.version.encode())
    fast = ROOT / "pilot" / "_fast"
    for path in [SOURCE, *sorted(fast.glob("*.pxd")), fast / "_udp_compat.h"]:
        digest.update(path.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "pilot-bench" / digest.hexdigest()[:16]


def _compile(directory: str) -> None:
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    extension = Extension(
        NAME, [str(SOURCE)], include_dirs=[str(ROOT / "pilot" / "_fast")], extra_compile_args=list(FLAGS)
    )
    modules = cythonize(
        [extension], include_path=[str(ROOT)], build_dir=directory, compiler_directives={"language_level": "3"}
    )
    command = build_ext(Distribution({"ext_modules": modules}))
    command.build_lib, command.build_temp = directory, directory
    command.finalize_options()
    command.run()


if __name__ == "__main__":
    _compile(sys.argv[1])
