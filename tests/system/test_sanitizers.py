"""The sanitizers find what they are for: a run that cannot fail proves nothing. Plants faults and looks for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from running_demo import PROJECT

PLANTED = r"""
#include <Python.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>

static int shared;
static void *count(void *nothing) { for (int i = 0; i < 100000; i++) shared++; return nothing; }
static PyObject *race(PyObject *self, PyObject *none) {
    pthread_t threads[2];
    Py_BEGIN_ALLOW_THREADS
    for (int i = 0; i < 2; i++) pthread_create(&threads[i], NULL, count, NULL);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}
static PyObject *use_after_free(PyObject *self, PyObject *none) {
    char *volatile freed = malloc(8);
    free(freed);
    return PyLong_FromLong(*(volatile char *)freed);
}
static PyObject *overflow(PyObject *self, PyObject *none) {
    volatile int largest = INT_MAX;
    largest += 1;
    return PyLong_FromLong(largest);
}
static PyMethodDef methods[] = {
    {"race", race, METH_NOARGS, NULL},
    {"use_after_free", use_after_free, METH_NOARGS, NULL},
    {"overflow", overflow, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "planted", NULL, -1, methods};
PyMODINIT_FUNC PyInit_planted(void) { return PyModule_Create(&definition); }
"""

CASE = """
import sys
sys.path.insert(0, {folder!r})

def test_planted():
    import ext.http_head
    import planted
    planted.{fault}()
"""

PLAIN_CASE = """
def test_plain():
    import sys
    sys.path.remove({built!r})
    import ext.http_head
"""


def sanitized(kind: str, case: Path) -> subprocess.CompletedProcess[str]:
    subprocess.run(["make", f"build/{kind}/.stamp"], cwd=PROJECT, capture_output=True, check=True)
    command = [sys.executable, "tools/sanitized_tests.py", kind, str(case), "--rootdir", str(PROJECT), "-p", "conftest"]
    environment = {**os.environ, "PYTEST_ADDOPTS": f"-o pythonpath={PROJECT / 'tests'}"}
    return subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kind", "flags", "fault", "report"),
    [
        ("asan", "address,undefined", "use_after_free", "AddressSanitizer: heap-use-after-free"),
        ("asan", "address,undefined", "overflow", "signed integer overflow"),
        ("tsan", "thread", "race", "ThreadSanitizer: data race"),
    ],
)
def test_a_planted_fault_fails_the_run_and_is_printed(
    tmp_path: Path, kind: str, flags: str, fault: str, report: str
) -> None:
    (tmp_path / "planted.c").write_text(PLANTED)
    compiler = ["gcc", "-shared", "-fPIC", "-g", "-O1", "-w", "-fno-wrapv", "-fno-sanitize-recover=undefined"]
    compiler += [f"-fsanitize={flags}", "-I/usr/include/python3.11", "planted.c", "-o", "planted.so"]
    subprocess.run(compiler, cwd=tmp_path, check=True)
    case = tmp_path / "test_planted.py"
    case.write_text(CASE.format(folder=str(tmp_path), fault=fault))

    run = sanitized(kind, case)

    assert run.returncode != 0
    assert report in run.stdout + run.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_of_plain_modules_fails(tmp_path: Path) -> None:
    case = tmp_path / "test_plain.py"
    case.write_text(PLAIN_CASE.format(built=str(PROJECT / "build" / "asan")))

    run = sanitized("asan", case)

    assert run.returncode != 0
    assert "modules not from" in run.stdout + run.stderr
