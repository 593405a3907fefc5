"""Environments do not change the process's memory settings; training asks the C library to keep memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.paths import ROOT
from tests.worlds import save_tiny_world

GLIBC = tuple(map(int, platform.libc_ver()[1].split("."))) if platform.libc_ver()[0] == "glibc" else (0, 0)
CODE = """
import ctypes, sys
import gymnasium, diamond_gym
from diamond_gym.backends.memory import keep_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.mallinfo2.restype = [ctypes.c_void_p], Info

def is_mapped():
    "Whether a block of 200 MiB gets its own mapping, as by default all above 32 MiB do."
    before = libc.mallinfo2().hblks
    block = libc.malloc(200 << 20)
    after = libc.mallinfo2().hblks
    libc.free(block)
    return after > before

assert is_mapped()
for make in (gymnasium.make, gymnasium.make_vec):
    env = make("DiamondBreakout-v0", checkpoint=sys.argv[1], device="cpu")
    env.reset(seed=0)
    env.close()
assert is_mapped(), "an environment has changed the settings"
assert keep_freed_memory()
assert not is_mapped()
"""


@pytest.mark.skipif(GLIBC < (2, 35), reason="earlier C libraries refuse thresholds above 32 MiB, others all")
def test_environments_leave_the_memory_settings_alone_and_training_can_change_them(tmp_path):
    world = save_tiny_world(tmp_path)
    subprocess.run([sys.executable, "-c", CODE, world], cwd=ROOT, check=True)
