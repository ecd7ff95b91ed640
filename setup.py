"""Builds the extension: every ext/*.pyx is one module. Metadata lives in pyproject.toml, not here.

`SANITIZE=address,undefined` or `SANITIZE=thread` builds with gcc's sanitizers (the Makefile's test-asan and test-tsan).
`WITHOUT_EXTENSION=1` leaves it out: pip would compile one module after the other, `build_ext` does so side by side.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

SANITIZE = os.environ.get("SANITIZE", "")
WITHOUT_EXTENSION = os.environ.get("WITHOUT_EXTENSION") == "1"
# Python's own CFLAGS carry -fwrapv, which silences UBSan's signed overflow (reliability.md section 9).
COMPILE = ["-std=gnu11", "-fno-wrapv", "-fno-strict-aliasing", "-Wall", "-Wno-unused-function", "-Wno-cpp"]
COMPILE += (
    ["-O1", "-g1", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=undefined"]
    if SANITIZE
    else ["-O3", "-g1", "-fno-plt", "-fvisibility=hidden"]
)
LINK = [f"-fsanitize={SANITIZE}"] if SANITIZE else []

# What a module links besides libc.
LIBRARIES = {
    "disk_record": ["crypto"],
    "disk": ["crypto"],
    "h2": ["nghttp2"],
    "h2_answers": ["nghttp2"],
    "h2_requests": ["nghttp2"],
    "h2_tunnel": ["nghttp2"],
    "tls": ["ssl", "crypto"],
    "tls_context": ["ssl", "crypto"],
    "tls_settings": ["ssl", "crypto"],
}

EXTENSIONS = [
    Extension(
        f"ext.{source.stem}",
        [str(source)],
        include_dirs=[numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        libraries=LIBRARIES.get(source.stem, []),
        extra_compile_args=COMPILE,
        extra_link_args=LINK,
        depends=["setup.py", *map(str, sorted(Path("ext").glob("*.h")))],
    )
    for source in sorted(Path("ext").glob("*.pyx"))
]

# Both sanitized builds compile the same C: writing it takes about a third of the time that compiling it does.
setup(
    ext_modules=[]
    if WITHOUT_EXTENSION
    else cythonize(
        EXTENSIONS,
        build_dir=f"build/cython-{'sanitized' if SANITIZE else 'plain'}",
        nthreads=os.cpu_count() or 1,
        emit_linenums=bool(SANITIZE),
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "freethreading_compatible": False,
        },
    ),
)
