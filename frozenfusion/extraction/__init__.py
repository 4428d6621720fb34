"""Stage one: every image through the frozen network once."""

from typing import TYPE_CHECKING

from frozenfusion.utils.lazy import face

if TYPE_CHECKING:
    from frozenfusion.extraction.config import ExtractConfig as ExtractConfig
    from frozenfusion.extraction.extractor import extract as extract

face(
    __name__,
    {
        "ExtractConfig": "frozenfusion.extraction.config",
        "extract": "frozenfusion.extraction.extractor",
    },
)
