"""Hypothesis profiles for all tests: `dev` is quick, `ci` looks longer, `search` as long at new examples each time.

`HYPOTHESIS_PROFILE` chooses; in CI it is `ci`, whose examples come from the tests themselves: what was judged once is judged alike
the next time.
"""

import os

from hypothesis import HealthCheck, settings

# No deadlines, no slowness: the machines that run this are shared, and time is never the subject of a Hypothesis test here.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("dev", _PATIENT, max_examples=60, stateful_step_count=25)
settings.register_profile("search", _PATIENT, max_examples=300, stateful_step_count=40, print_blob=True)
settings.register_profile("ci", settings.get_profile("search"), derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))
