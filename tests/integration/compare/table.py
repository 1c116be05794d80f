"""Every scenario, by subject."""

from __future__ import annotations

from tests.integration.compare.scenario import Scenario, Subject
from tests.integration.compare.scenarios.about import ABOUT
from tests.integration.compare.scenarios.cancels import CANCELS
from tests.integration.compare.scenarios.clients import CLIENTS, NVIDIAS
from tests.integration.compare.scenarios.errors import SHAPES, VALUES
from tests.integration.compare.scenarios.guarded import CONTROL, GONE, GUARDED
from tests.integration.compare.scenarios.parameters import PARAMETERS
from tests.integration.compare.scenarios.shared_memory import SHARED_MEMORY
from tests.integration.compare.scenarios.statuses import STATUSES
from tests.integration.compare.scenarios.stops import STOPS
from tests.integration.compare.scenarios.streams import STREAMS
from tests.integration.compare.scenarios.transport import TRANSPORT
from tests.integration.compare.scenarios.unary import UNARY

SUBJECTS: tuple[Subject, ...] = (
    UNARY,
    STREAMS,
    SHAPES,
    VALUES,
    STATUSES,
    STOPS,
    CANCELS,
    SHARED_MEMORY,
    PARAMETERS,
    TRANSPORT,
    ABOUT,
    GUARDED,
    CONTROL,
    GONE,
    CLIENTS,
    NVIDIAS,
)
SCENARIOS: tuple[Scenario, ...] = tuple(each for subject in SUBJECTS for each in subject.scenarios)
