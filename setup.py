"""Build of the compiled ground floor: every pilot/_fast/*.pyx becomes one extension module.

Everything else about the package is in pyproject.toml. `PILOT_ANNOTATE=1` writes Cython's HTML reports,
`PILOT_SANITIZE=1` builds with address and undefined-behaviour sanitizers.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FAST = Path("pilot") / "_fast"


def fail(sentence: str) -> None:
    raise SystemExit(f"pilot: {sentence}")


def check_toolchain() -> None:
    """End the build with one line naming the missing package, instead of a page of compiler output."""
    if sys.platform == "win32":
        fail("Windows is not supported yet: build on Linux or macOS (or in WSL).")
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        fail(
            f"no C compiler ({compiler}) found: install one (Debian/Ubuntu: apt-get install gcc libc6-dev; "
            "macOS: xcode-select --install)."
        )
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        fail(f"Python.h not found: install the Python headers (Debian/Ubuntu: apt-get install python{version}-dev).")
    if sys.platform == "linux" and not any(Path(d, "stdio.h").exists() for d in header_directories()):
        fail("stdio.h not found: install the C library headers (Debian/Ubuntu: apt-get install libc6-dev).")


def header_directories() -> list[str]:
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    inherited = (os.environ.get("C_INCLUDE_PATH", "") + ":" + os.environ.get("CPATH", "")).split(":")
    return ["/usr/include", f"/usr/include/{multiarch}", "/usr/local/include", *filter(None, inherited)]


class CheckedBuild(build_ext):
    """`build_ext` that looks for the compiler and the headers first, and compiles on all cores."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count() or 1

    def run(self) -> None:
        check_toolchain()
        super().run()


def extensions() -> list[Extension]:
    flags = ["-O2", "-fno-strict-aliasing", "-Wno-unused-function"]
    link: list[str] = []
    if os.environ.get("PILOT_SANITIZE"):
        sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
        sanitize += ["-g", "-O1"]
        flags, link = [*flags, *sanitize], sanitize
    return [
        Extension(
            f"pilot._fast.{source.stem}",
            [str(source)],
            extra_compile_args=flags,
            extra_link_args=link,
        )
        for source in sorted(FAST.glob("*.pyx"))
    ]


def cythonized() -> list[Extension]:
    from Cython.Build import cythonize

    modules: list[Extension] = cythonize(
        extensions(),
        nthreads=os.cpu_count() or 1,
        annotate=bool(os.environ.get("PILOT_ANNOTATE")),
        compiler_directives={
            "language_level": "3",
            "embedsignature": True,
            "freethreading_compatible": False,
        },
    )
    return modules


if __name__ == "__main__":
    building = any(command.startswith(("build", "bdist", "develop", "editable", "install")) for command in sys.argv[1:])
    if building:
        check_toolchain()
    setup(ext_modules=cythonized() if building else extensions(), cmdclass={"build_ext": CheckedBuild})
