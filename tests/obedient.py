"""A child process that does what its arguments say: refuse, fail, wait, count what it is fed, or end well."""

import os
import sys
import time

from tkjax.errors import refuse

if __name__ == "__main__":
    what = sys.argv[1]
    if what == "refuse":
        print("working", flush=True)
        refuse("the file is\nnot there")
        sys.exit(2)
    if what == "usage":  # as argparse ends
        print("usage: …", file=sys.stderr)
        sys.exit(2)
    if what == "fail":
        raise KeyError("bug")
    if what == "wait":
        with open(sys.argv[2], "w") as out:
            out.write(str(os.getpid()))
        time.sleep(60)
    if what == "count":
        n = len(sys.stdin.buffer.read())
        with open(sys.argv[2], "w") as out:
            out.write(str(n))
