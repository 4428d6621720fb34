"""Outputs of a frozen text encoder, kept in feature stores beside the image features.

The pooled outputs (n, d) are float32; token outputs (n, l, d), which only some fusion heads read, are float16, since
they are l times as large. A row is looked up by the pair's id and trusted if it was made from the same tokens.
Shapes: n texts, b of a batch, l tokens of the longest text, d width of the encoder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from frozenfusion.store.hdf5 import Scalar
from frozenfusion.store.raw_file import Array
from frozenfusion.store.reader import FeatureStore, Rows
from frozenfusion.store.status import DIGEST_BYTES, OK
from frozenfusion.store.tensors import FeatureRows
from frozenfusion.store.writer import StoreWriter
from frozenfusion.text.batching import batches_in_order_of_length
from frozenfusion.text.encoder import TextFeatures, encode
from frozenfusion.text.pooling import POOLER
from frozenfusion.text.tokens import TokenizedTexts
from frozenfusion.utils.device import computing_in
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.locks import sweep_lock
from frozenfusion.utils.names import encoded_names
from frozenfusion.utils.progress import Progress, log
from frozenfusion.utils.tensors import weights_sha256

FORMAT = 1
BATCH_SIZE = 32


class CachedTexts:
    """Texts as stored features, in the place of `TokenizedTexts`: `batch` gives what the encoder would."""

    def __init__(self, pooled: FeatureRows, tokens: FeatureRows | None, lengths: Rows) -> None:
        self._pooled, self._tokens = pooled, tokens
        # pooled features need no padding, so that any batch is as good as another
        self.lengths = lengths if tokens is not None else np.ones_like(lengths)  # (n,)

    def pooled_only(self) -> CachedTexts:
        """The same texts without token features."""
        return CachedTexts(self._pooled, None, self.lengths)

    def of(self, places: Rows) -> CachedTexts:
        """Some of the texts, those at `places`."""
        tokens = None if self._tokens is None else self._tokens.of(places)
        return CachedTexts(self._pooled.of(places), tokens, self.lengths[places])

    def pooled_of(self, texts: TokenizedTexts, ids: Sequence[str] | Array) -> FeatureRows | None:
        """Pooled features of other texts, called `ids`, where the store has them all; none is computed."""
        store = self._pooled.store
        rows = store.rows(ids)
        if not ((rows >= 0).all() and _fresh(store, rows, _digests(texts)).all()):
            return None
        return FeatureRows(store, rows)

    def batch(self, rows: Rows) -> TextFeatures:
        """Features of some texts: pooled (b, d), and tokens (b, l, d) with their mask where they are cached."""
        pooled = self._pooled[rows]
        if self._tokens is None:
            return TextFeatures(pooled)
        lengths = torch.from_numpy(self.lengths[rows])
        longest = int(lengths.max())
        mask = torch.arange(longest) < lengths[:, None]
        return TextFeatures(pooled, self._tokens.first(rows, longest), mask.to(pooled.device))


def cached_texts(
    encoder: PreTrainedModel,
    texts: TokenizedTexts,
    ids: Sequence[str] | Array,
    cache: Path,
    *,
    tokens: bool,
    device: torch.device,
    autocast: torch.dtype | None = None,
    pool: str = POOLER,
) -> CachedTexts:
    """Features of `texts`, called `ids`, by a frozen encoder: read from beside `cache`, computed where they lack.

    `tokens` asks for token features as well; `autocast` is the arithmetic of the encoder, float32 if None; `pool` is as
    for `encode`. What is there is not computed again, and an interrupted computation is resumed. Raises UserError where
    the disk refuses.
    """
    fingerprint: dict[str, Scalar] = {
        "format": FORMAT,
        "encoder": weights_sha256(encoder.state_dict()),
        "configuration": _configuration_digest(encoder),
        "max_length": texts.max_length,
        "precision": "float32" if autocast is None else str(autocast).removeprefix("torch."),
    }
    width = int(encoder.config.hidden_size)
    shapes: dict[str, tuple[tuple[int, ...], str]] = {"pooled": ((width,), "float32")}
    if tokens:
        longest = -(-int(texts.lengths.max()) // 8) * 8
        shapes["tokens"] = ((longest, width), "float16")
    paths, digests = {}, _digests(texts)
    with ExitStack() as writers:
        writers.enter_context(_naming_the_option())
        lacking = {}
        for output, (shape, dtype) in shapes.items():
            own = {**fingerprint, "output": output, "shape": "x".join(map(str, shape)), "dtype": dtype}
            if output == "pooled" and pool != POOLER:  # which is what files that name no pooling hold
                own["pool"] = pool
            paths[output] = cache_path(cache, own)
            if _is_complete(paths[output], ids, digests):
                sweep_lock(paths[output])
            else:
                lacking[output] = writers.enter_context(_writer(paths[output], ids, shape, dtype, own))
        if lacking:
            _fill(lacking, encoder, texts, ids, digests, device, autocast, pool)
    rows = {}
    for output, path in paths.items():
        store = FeatureStore(path)
        rows[output] = FeatureRows(store, store.rows(ids), device)
    return CachedTexts(rows["pooled"], rows.get("tokens"), texts.lengths)


def text_cache(cache: Path, folder: str | None) -> Path:
    """What text features are named after: the feature file of the images, or one of its name in a folder of theirs."""
    return cache if folder is None else Path(folder) / cache.name


@contextmanager
def _naming_the_option() -> Iterator[None]:
    """Add to an error of the disk what chooses another place for text features."""
    try:
        yield
    except UserError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise UserError(f"{error} (`text_cache` names another folder for text features)") from error


def cache_path(cache: Path, fingerprint: dict[str, Scalar]) -> Path:
    """Where text features of a fingerprint lie: NAME.text-<12 hex>.h5 beside the image features NAME.h5."""
    code = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:12]
    return cache.with_name(f"{cache.stem}.text-{code}.h5")


def _is_complete(path: Path, ids: Sequence[str] | Array, digests: np.ndarray) -> bool:
    """Whether a store has an up-to-date row of every text. Then it is only read, and needs no lock."""
    if not path.exists():
        return False
    store = FeatureStore(path)
    rows = store.rows(ids)
    return bool((rows >= 0).all() and _fresh(store, rows, digests).all())


def _writer(
    path: Path, ids: Sequence[str] | Array, shape: tuple[int, ...], dtype: str, fingerprint: dict[str, Scalar]
) -> StoreWriter:
    if path.exists():
        return StoreWriter.extend(path, ids, fingerprint)
    size = len(ids) * int(np.prod(shape)) * np.dtype(dtype).itemsize / 2**20
    log.info(
        "caching the frozen text encoder's %s outputs of %s texts in %s (%s MB)",
        fingerprint["output"],
        f"{len(ids):,}",
        path,
        f"{size:,.0f}" if size >= 10 else f"{size:.1f}",
    )
    return StoreWriter.create(path, np.sort(encoded_names(ids)), shape, dtype, fingerprint)


def _fill(
    writers: Mapping[str, StoreWriter],
    encoder: PreTrainedModel,
    texts: TokenizedTexts,
    ids: Sequence[str] | Array,
    digests: np.ndarray,
    device: torch.device,
    autocast: torch.dtype | None,
    pool: str,
) -> None:
    """Compute the rows that are pending or were made from other tokens, each output's into its own store.

    Batches are cut from all texts alike, whatever is already there, so that an interrupted computation that is resumed
    ends in the same bits.
    """
    rows = {output: writer.store.rows(ids) for output, writer in writers.items()}
    stale = {output: ~_fresh(writer.store, rows[output], digests) for output, writer in writers.items()}
    for output, writer in writers.items():
        writer.reset(rows[output][stale[output]])
    any_stale = np.logical_or.reduce(list(stale.values()))
    encoder.to(device).eval()  # type: ignore[arg-type]  # to a type checker, transformers' wrapper takes `self` anew
    with torch.inference_mode(), Progress(int(any_stale.sum()), "texts", "text encoder") as progress:
        for batch in batches_in_order_of_length(texts.lengths, BATCH_SIZE):
            if not any_stale[batch].any():
                continue
            given = {name: part.to(device) for name, part in texts.batch(batch).items()}
            with computing_in(autocast, device):
                features = encode(encoder, given, pool)
            for output, writer in writers.items():
                todo = np.flatnonzero(stale[output][batch])
                values = _as_rows(features, output, writer.store.shape)[todo].astype(writer.store.dtype)
                places = batch[todo]
                writer.write(rows[output][places], values, digests[places], np.zeros((len(todo), 2), np.int64))
            progress.update(int(any_stale[batch].sum()))


def _as_rows(features: TextFeatures, output: str, shape: tuple[int, ...]) -> np.ndarray:
    """Features as float32 rows of a store: (b, d), or (b, l, d) with zeros at padding."""
    if output == "pooled" or features.tokens is None or features.mask is None:
        return features.pooled.float().cpu().numpy()
    tokens = (features.tokens.float() * features.mask[..., None]).cpu().numpy()
    filled = np.zeros((len(tokens), *shape), np.float32)
    length = min(tokens.shape[1], shape[0])
    filled[:, :length] = tokens[:, :length]
    return filled


def _fresh(store: FeatureStore, rows: Rows, digests: np.ndarray) -> np.ndarray:
    fresh: np.ndarray = (store.status[rows] == OK) & (store.digest[rows] == digests).all(axis=1)
    return fresh


def _digests(texts: TokenizedTexts) -> np.ndarray:
    """BLAKE2b of what the encoder sees of each text, its token ids and types: (n, 16) uint8."""
    spans = pairwise(map(int, texts.offsets))
    codes = (
        hashlib.blake2b(texts.ids[a:b].tobytes() + texts.types[a:b].tobytes(), digest_size=DIGEST_BYTES).digest()
        for a, b in spans
    )
    return np.fromiter(codes, f"V{DIGEST_BYTES}", len(texts)).view(np.uint8).reshape(-1, DIGEST_BYTES)


def _configuration_digest(encoder: PreTrainedModel) -> str:
    """SHA-256 of the encoder's configuration, without what does not change its outputs: names, versions."""
    values = encoder.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"):
        values.pop(name, None)
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
