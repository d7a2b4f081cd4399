"""`python -m pinchpoint.telemetry`: the collector process. Started by `start_collector`, not by people."""

import sys

from pinchpoint.telemetry.collect import main

sys.exit(main())
