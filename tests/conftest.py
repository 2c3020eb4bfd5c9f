"""What all tests share: hypothesis without a stopwatch, since other work may run on the same two cores."""

from hypothesis import HealthCheck, settings

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
