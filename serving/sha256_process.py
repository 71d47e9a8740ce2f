"""The sha256 of a file, by a process of its own: `python serving/sha256_process.py PARENT NICENESS FILE`.

Prints the hex digest. Ends when its parent, of that process id, is gone. With Python's own library only: it
starts in a few hundredths of a second.
"""

import hashlib
import os
import sys
import time

_PIECE = 1 << 18
"""Bytes: a fraction of a millisecond."""
_PAUSE = 0.002
"""Seconds after a piece while others want the cores. Whoever wakes on the core of a process that computes
waits until its turn ends, which is milliseconds however low its priority is."""
_BUSY = 0.0005
"""Seconds of a piece that a process waited for a core, from which on others want it."""
_BUSY_FOR = 1.0
"""Seconds that this is believed."""


def main(parent: int, niceness: int, path: str) -> int:
    """Returns the exit status: 1 for a file that cannot be read, whose error is printed."""
    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    digest, piece = hashlib.sha256(), memoryview(bytearray(_PIECE))
    waited, busy_until = _waited(), 0.0
    try:
        with open(path, "rb", buffering=0) as file:
            while size := file.readinto(piece):
                digest.update(piece[:size])
                if os.getppid() != parent:
                    return 1
                before, waited = waited, _waited()
                if waited - before > _BUSY:
                    busy_until = time.monotonic() + _BUSY_FOR
                if time.monotonic() < busy_until:
                    time.sleep(_PAUSE)
    except OSError as error:
        print(error.strerror, file=sys.stderr)
        return 1
    print(digest.hexdigest())
    return 0


def _waited() -> float:
    """Seconds that this process could have run and had no core; 0.0 where the system does not count them."""
    try:
        with open("/proc/self/schedstat", "rb", buffering=0) as file:
            return int(file.read().split()[1]) / 1e9
    except OSError:
        return 0.0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
