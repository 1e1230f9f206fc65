"""`streamfold`, in a process whose every fsync fails from SIGRTMIN on.

The kernel itself answers EIO, by a seccomp filter on all threads: SQLite and all around it are what they are in
production, and only the disk is bad. Linux only; neither root nor a compiler is needed.
"""

import ctypes
import errno
import platform
import signal
import sys

from broker.cli import main

FSYNC_NUMBERS = {"x86_64": (0xC000003E, 74, 75, 328, 317), "aarch64": (0xC00000B7, 82, 83, 287, 277)}
"""By machine: its audit name, and the numbers of fsync, fdatasync, pwritev2 (it can sync what it writes), seccomp."""

# linux/prctl.h, linux/seccomp.h, linux/filter.h
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_TSYNC = 1
SECCOMP_RET_ALLOW = 0x7FFF0000
SECCOMP_RET_ERRNO = 0x00050000
LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
JUMP_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K
AT_NUMBER, AT_ARCHITECTURE = 0, 4


class Instruction(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(Instruction)))


def fail_every_fsync() -> None:
    """From here on, in every thread. Raises OSError when the kernel does not allow filters."""
    architecture, fsync, fdatasync, pwritev2, seccomp = FSYNC_NUMBERS[platform.machine()]
    instructions = [
        Instruction(LOAD, 0, 0, AT_ARCHITECTURE),
        Instruction(JUMP_IF_EQUAL, 0, 4, architecture),
        Instruction(LOAD, 0, 0, AT_NUMBER),
        Instruction(JUMP_IF_EQUAL, 3, 0, fsync),
        Instruction(JUMP_IF_EQUAL, 2, 0, fdatasync),
        Instruction(JUMP_IF_EQUAL, 1, 0, pwritev2),
        Instruction(RETURN, 0, 0, SECCOMP_RET_ALLOW),
        Instruction(RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.EIO),
    ]
    program = Program(len(instructions), (Instruction * len(instructions))(*instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(
        seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, ctypes.byref(program)
    ):
        raise OSError(ctypes.get_errno(), "no seccomp filter")


if __name__ == "__main__":
    signal.signal(signal.SIGRTMIN, lambda _number, _frame: fail_every_fsync())
    main(sys.argv[1:])
