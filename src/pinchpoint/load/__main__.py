"""`python -m pinchpoint.load FD`: one load process. Started by `Fleet`, not by people."""

import sys
from multiprocessing.connection import Connection

from pinchpoint.load.worker import work

work(Connection(int(sys.argv[1])))
