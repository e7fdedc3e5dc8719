"""`python bound.py PARENT COMMAND…`: becomes COMMAND, which gets SIGTERM when the process PARENT dies.

A program of its own because the alternative, subprocess's preexec_fn, is unsafe in a process with threads.
PR_SET_PDEATHSIG survives exec; it is tied to the thread that started us, which therefore has to wait for us.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2); Linux only, elsewhere the command is merely run

if __name__ == "__main__":
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked to be told
            sys.exit(1)
    os.execvp(command[0], command)
