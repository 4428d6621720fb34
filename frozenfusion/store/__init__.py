"""The feature file: rows computed once, kept in HDF5, read as mapped memory."""

from typing import TYPE_CHECKING

from frozenfusion.utils.lazy import face

if TYPE_CHECKING:
    from frozenfusion.store.reader import FeatureStore as FeatureStore
    from frozenfusion.store.writer import StoreWriter as StoreWriter

face(
    __name__,
    {
        "FeatureStore": "frozenfusion.store.reader",
        "StoreWriter": "frozenfusion.store.writer",
    },
)
