"""For all tests: properties are tried on the same examples each time, and no time is measured.

`HYPOTHESIS_PROFILE=explore` tries others, which is how to look for what nobody has thought of; what it finds becomes an
`@example`. A host that stands still for half a second fails no property.
"""

import os

from hypothesis import settings

settings.register_profile("settled", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "settled"))
