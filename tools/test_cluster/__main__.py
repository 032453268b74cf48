"""python -m tools.test_cluster up|down|status [--root FOLDER]"""

import sys

from refsam.system.signals import answering_ctrl_c

if __name__ == "__main__":
    with answering_ctrl_c("stopped by Ctrl-C"):
        from tools.test_cluster.command import main

        sys.exit(main())
