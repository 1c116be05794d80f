"""Where the decision recorder writes, and how much it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sidecar.core.settings import FORBID_UNKNOWN, require


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderSettings:
    """Where decisions are recorded, and how much of them is kept."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    directory: Path  # made where it is missing
    segment_records_max: int = 500_000  # some 15 MB compressed, half an hour of a busy engine
    segments_max: int = 16  # older ones are deleted

    def __post_init__(self) -> None:
        require(
            self.segment_records_max >= 1, f"recorder: segment_records_max must be >= 1, not {self.segment_records_max}"
        )
        require(self.segments_max >= 1, f"recorder: segments_max must be >= 1, not {self.segments_max}")
