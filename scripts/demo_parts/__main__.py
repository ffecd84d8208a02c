"""`python -m scripts.demo_parts`: the command, whose parts take a moment to load."""

import signal
import sys

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Nothing is started yet: Ctrl-C simply ends us, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .command import main

    sys.exit(main())
