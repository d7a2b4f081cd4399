"""For all tests. A host that stands still for half a second fails no law: hypothesis measures no time."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
