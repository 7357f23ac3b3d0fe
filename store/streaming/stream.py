"""The batches of an epoch, read ahead by threads, in an order that depends on nothing but the plan."""

import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow.compute as pc
from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.identity import fingerprint
from encodeonce.store.reader import FeatureStore
from encodeonce.store.streaming.ahead import ShardsAhead, check_cache
from encodeonce.store.streaming.batches import Batch, Crop, Filler, Form, Place
from encodeonce.store.streaming.damage import Damage
from encodeonce.store.streaming.epoch import (
    SHARD_WINDOW,
    WINDOW,
    Epoch,
    Step,
    count_steps,
    plan_epoch,
    random_bits,
    steps,
)
from encodeonce.store.streaming.options import PlanOptions, Shuffle, check_choice
from encodeonce.store.streaming.ranks import find_ranks
from encodeonce.store.streaming.reading import Reading, Span
from encodeonce.store.streaming.ring import Ring
from encodeonce.store.streaming.selection import Source, contents_hash, join, select

if TYPE_CHECKING:
    from encodeonce.store.streaming.loader import StreamDataset

CROP_BITS = 3
"""The purpose of the random numbers that place crops; see `random_bits`."""


class Stream:
    """Batches of a store, an epoch an iteration: `for batch in stream`.

    The batches of an epoch are one global sequence, a function of seed, epoch, the utterances' lengths and the options alone.
    At each step the W ranks take the next W batches of it, so that at any moment a prefix of the sequence was taken; the
    last batches are split, so that every rank makes as many steps. Iterating goes on where the stream stands: at the next
    batch after a `break` or `load_state_dict`, at the next epoch after the last batch.

    Args:
        store: where the first output is from.
        frames_per_batch: what a batch holds at most, padding included: utterances times the longest one's frames.
        seed: of the order and the crops.
        rank, world_size: which of how many takers of the sequence this is; by default what torch.distributed or torchrun say.
        outputs: outputs of the store to give, the first being `batch.features`; by default the store's default output.
        beside: other feature sets, joined by utterance id: a name, and a store whose default output `batch[name]` then has.
        missing: what to do with utterances that a store of `beside` lacks: "error", or "drop" them.
        columns: columns of the table to give along; metadata come as dictionaries.
        where: which utterances to take: an Arrow expression, or text such as "duration < 15 and language == 'en'".
        min_frames, max_frames: leave out utterances that are shorter or longer.
        crop_frames: of longer utterances take so many frames, elsewhere in every epoch.
        max_batch: utterances of a batch at most.
        window: utterances among which those of like length are grouped; larger is less padding and less random batches.
        shuffle: "all" utterances; windows of "shards", of which few are read at a time; "none"; "auto" is "shards" for stores
            that come through the disk cache, and "all" otherwise.
        shard_window: shards of a window.
        drop_last: drop the batches that are left over when the ranks have taken theirs, instead of splitting them.
        device: where the tensors go: "cpu", "cuda" ...; None gives numpy arrays.
        dtype: of the features, such as "float32" or "bfloat16"; by default the stored one (float32 for int8, int32 for codes).
        threads: that read ahead.
        prefetch: batches that are read ahead.
        on_error: "raise" what is wrong with a shard, or "skip" its utterances, which are then in `skipped`.

    Raises:
        StoreError: an option does not fit the store.
    """

    def __init__(
        self,
        store: FeatureStore,
        *,
        frames_per_batch: int,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        outputs: str | Sequence[str] | None = None,
        beside: Mapping[str, FeatureStore] | None = None,
        missing: Literal["error", "drop"] = "error",
        columns: str | Sequence[str] = ("text",),
        where: str | pc.Expression | None = None,
        min_frames: int | None = None,
        max_frames: int | None = None,
        crop_frames: int | None = None,
        max_batch: int | None = None,
        window: int = WINDOW,
        shuffle: Shuffle = "auto",
        shard_window: int = SHARD_WINDOW,
        drop_last: bool = False,
        device: Any = "cpu",
        dtype: Any = None,
        threads: int = 2,
        prefetch: int = 4,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        check_choice("shuffle", shuffle, get_args(Shuffle))
        check_choice("on_error", on_error, ("raise", "skip"))
        check_choice("missing", missing, ("error", "drop"))
        if min(threads, prefetch) < 1:
            raise StoreError(f"threads={threads}, prefetch={prefetch}: take 1 or more")
        columns = [columns] if isinstance(columns, str) else list(columns)
        for column in columns:
            check_choice("columns", column, store.column_names)
        beside = dict(beside or {})
        for name, other in beside.items():
            if not isinstance(other, FeatureStore):
                raise StoreError(f"beside={{{name!r}: {other!r}}}: give an open FeatureStore")
        names = [outputs] if isinstance(outputs, str) else list(outputs or [store.output])
        if taken := set(beside) & set(names) or {n for n in names if names.count(n) > 1}:
            raise StoreError(f"{taken.pop()!r} names two outputs of the stream; give each a name of its own")
        self.store, self.drop_last = store, drop_last
        self.rank, self.world_size, together = find_ranks(rank, world_size)
        self._threads, self._prefetch = threads, prefetch
        form = Form.of(device, dtype)
        if shuffle == "auto":
            cached = any(part.is_cached for s in (store, *beside.values()) for part in s.parts)
            shuffle = "shards" if cached else "all"
        self.options = PlanOptions(
            seed=seed,
            frames_per_batch=frames_per_batch,
            window=window,
            shard_window=shard_window,
            max_batch=max_batch,
            min_frames=min_frames,
            max_frames=max_frames,
            crop_frames=crop_frames,
            shuffle=shuffle,
        )
        chosen, others = join(store, select(store, where, min_frames, max_frames), beside, missing == "drop")
        self._sources = [Source(name, store, store.spec(name), chosen, Ring(form.on_gpu)) for name in names]
        for name, indices in others.items():
            self._sources.append(Source(name, beside[name], beside[name].spec(), indices, Ring(form.on_gpu)))
        if shuffle == "shards":
            check_cache(self._sources, shard_window)
        self._lengths = np.minimum(store.frames[chosen], crop_frames or np.iinfo(np.int32).max)
        self._check_lengths()
        self._shards = self._sources[0].shard_keys() if shuffle == "shards" else None
        contents = contents_hash(self._sources, self._lengths, self._shards)
        self.plan_hash = fingerprint({"contents": contents, **asdict(self.options)})
        """sha256 of everything that the sequence of batches depends on."""
        self._filler = Filler(self._sources, columns, form, frames_per_batch)
        self._damage = Damage(self._sources, together, self.world_size == 1) if on_error == "skip" else None
        self._plans: dict[int, Epoch] = {}
        self._epoch, self._taken, self._loop = 0, 0, 0
        self._next: Reading | None = None
        self.wait_seconds = 0.0
        """How long the consumer has waited for batches, in all."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "_next": None}

    @property
    def skipped(self) -> dict[str, str]:
        """Utterances that were left out because their shards are damaged, each with what is wrong; see `on_error`."""
        return {} if self._damage is None else dict(self._damage.skipped)

    def __len__(self) -> int:
        """Steps of the whole epoch that the next batch is of."""
        return self.steps(self._epoch)

    @property
    def epoch(self) -> int:
        """The epoch that the next batch is of."""
        return self._epoch

    def steps(self, epoch: int) -> int:
        """Steps of a whole epoch, the same for every rank. Epochs may differ by a few; skipped shards may make it fewer."""
        return count_steps(len(self.plan(epoch)), self.world_size, self.drop_last)

    def plan(self, epoch: int) -> Epoch:
        """The global sequence of an epoch; utterances are numbered as the stream chose them."""
        plan = self._plans.get(epoch)
        if plan is None:
            options = self.options
            plan = plan_epoch(
                self._lengths,
                seed=options.seed,
                epoch=epoch,
                frames_per_batch=options.frames_per_batch,
                window=options.window,
                max_batch=options.max_batch,
                shards=self._shards,
                shard_window=options.shard_window,
                shuffle=options.shuffle != "none",
            )
            self._plans = {**dict(list(self._plans.items())[-1:]), epoch: plan}  # this one and the one before
        return plan

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: small integers and the hash of the plan, the same on every rank.

        Taken at any moment, it restores the batches that come next, on any number of ranks.
        """
        options = {name: value for name, value in asdict(self.options).items() if value is not None}
        totals = {"utterances": len(self._lengths), "frames": int(self._lengths.sum(dtype=np.int64))}
        return {"epoch": self._epoch, "batch": self._taken, "plan": self.plan_hash, **totals, **options}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another stream stood; nothing is read again.

        Raises:
            StoreError: the state is of another plan; the message says what differs.
        """
        lacking = {"epoch", "batch", "plan"} - (state.keys() if isinstance(state, Mapping) else set())
        if lacking:
            raise StoreError(f"this is no state of a stream: it lacks {', '.join(sorted(lacking))}")
        if differing := plan_differences(self.state_dict(), state):
            raise StoreError(
                f"the state is of another plan and cannot be resumed here, ours against the state's: {differing}; give the stream "
                f"what it had, or begin that epoch anew with seek({state['epoch']})"
            )
        self.seek(state["epoch"], state["batch"])

    def __getitem__(self, number: int) -> Batch:
        raise TypeError("a stream gives no single batches; a DataLoader takes stream.dataset(), with batch_size=None")

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def seek(self, epoch: int, batch: int = 0) -> None:
        """Go on at an epoch, after so many batches of its global sequence (`batch.place.taken` of the last one).

        Raises:
            StoreError: the epoch has fewer batches.
        """
        try:
            epoch, batch = operator.index(epoch), operator.index(batch)
        except TypeError as error:
            raise StoreError(f"epoch {epoch!r}, batch {batch!r}: take whole numbers") from error
        if epoch < 0 or not 0 <= batch <= len(self.plan(epoch)):
            raise StoreError(
                f"epoch {epoch} has {len(self.plan(max(epoch, 0)))} batches; {batch} of them cannot be taken"
            )
        self._loop += 1  # a loop that is going on ends
        self._move(epoch, batch)

    def _move(self, epoch: int, taken: int) -> None:
        done = taken >= len(self.plan(epoch))
        self._epoch, self._taken = (epoch + 1, 0) if done else (epoch, taken)

    def dataset(self) -> "StreamDataset":
        """The stream for torch's DataLoader; see `StreamDataset`."""
        from encodeonce.store.streaming.loader import StreamDataset

        return StreamDataset(self)  # pyrefly: ignore[bad-argument-type]

    def batches(
        self, worker: int = 0, workers: int = 1, go_on: bool = False, then: Callable[[Batch], Any] | None = None
    ) -> Iterator[Any]:
        """The rest of the epoch; of several workers that share a rank, each gives every so-manieth step of it.

        Args:
            go_on: begin to read the next epoch before this one has ended, for whoever will iterate again.
            then: is given each batch in the thread that read it; what it returns is given instead of the batch.
        """
        begun = time.perf_counter()
        self._loop += 1
        loop, reading, ended = self._loop, self._begin(worker, workers, then), False
        epoch = reading.span.epoch
        try:
            while (taken := reading.take()) is not None:
                step, batch, made = taken
                if self._loop != loop:
                    raise StoreError("another loop over this stream has begun, or it was moved: this one cannot go on")
                self._move(epoch, step.consumed)
                # What is damaged is found out by all ranks together, when they have all come to the next epoch.
                if go_on and self._next is None and self._damage is None and reading.all_under_way:
                    self._next = self._read(Span(epoch + 1, 0, worker, workers, then))
                batch.record_use()
                # Who takes it alone holds it: its buffers come back when that one is done with it.
                given = [made]
                del taken, batch, made
                self.wait_seconds += time.perf_counter() - begun
                yield given.pop()
                begun = time.perf_counter()
            ended = True
        finally:
            reading.close()
            if not ended and self._loop == loop and self._next is not None:
                self._next.close()
                self._next = None

    def _begin(self, worker: int, workers: int, then: Callable[[Batch], Any] | None) -> Reading:
        """The reading of what comes, which may be under way already."""
        span, found = Span(self._epoch, self._taken, worker, workers, then), self._next
        self._next = None
        if found is not None and found.span != span:
            found.close()
            found = None
        reading = found or self._read(span)
        if reading.empty:
            self._move(span.epoch, len(self.plan(span.epoch)))  # all of it was dropped, or belongs to other workers
        return reading

    def _read(self, span: Span) -> Reading:
        epoch = span.epoch
        plan, crop = self.plan(epoch), self._crop(epoch)
        whole = None if self._damage is None else self._damage.readable()
        todo = list(self._steps(plan, whole, span.taken))[span.worker :: span.workers]
        self._filler.begin()
        return Reading(
            span,
            todo,
            lambda step: self._make(plan, step, whole, crop, epoch),
            ShardsAhead(self._sources, [plan.batch(step.batch) for step in todo]),
            self._filler.begin_thread,
            self._threads,
            self._prefetch,
            afterwards=lambda: self.plan(epoch + 1),
        )

    def _steps(self, plan: Epoch, whole: np.ndarray | None, taken: int) -> Iterator[Step]:
        """This rank's steps after so many batches; batches of which nothing can be read are passed over by all."""
        if whole is None:
            yield from steps(plan.ends - plan.starts, taken, self.rank, self.world_size, self.drop_last)
            return
        readable = np.concatenate([[0], np.cumsum(whole[plan.order])])
        sizes = readable[plan.ends] - readable[plan.starts]
        numbers = np.flatnonzero(sizes)
        after = np.append(numbers[1:], len(plan))  # where the sequence stands when a batch was taken
        before = int(np.searchsorted(numbers, taken))
        for step in steps(sizes[numbers], before, self.rank, self.world_size, self.drop_last):
            yield replace(step, batch=int(numbers[step.batch]), consumed=int(after[step.consumed - 1]))

    def _make(self, plan: Epoch, step: Step, whole: np.ndarray | None, crop: Crop | None, epoch: int) -> Batch:
        """A batch, read in a thread."""
        members = plan.batch(step.batch)
        if whole is not None:
            members = members[whole[members]]
        members = members[step.first : step.last]
        place = Place(epoch, step.batch, step.consumed)
        if self._damage is None:
            return self._filler.fill(members, crop, place)
        while True:
            # A shard that goes bad after the epoch began leaves a smaller batch, so that all ranks make as many steps.
            members = members[self._damage.outside(members)]
            try:
                return self._filler.fill(members, crop, place)
            except DamagedError:
                self._damage.meet(members)
                if self._damage.outside(members).all():
                    raise

    def _crop(self, epoch: int) -> Crop | None:
        most = self.options.crop_frames
        if most is None:
            return None
        spare = np.maximum(self._sources[0].frames.astype(np.int64) - most, 0)
        fractions = random_bits(len(spare), self.options.seed, epoch, CROP_BITS) >> np.uint64(40)  # 24 bits
        starts = (fractions.astype(np.int64) * (spare + 1)) >> 24
        return Crop(most, starts, self.store.frame_rate)

    def _check_lengths(self) -> None:
        most, over = self.options.frames_per_batch, int((self._lengths > self.options.frames_per_batch).sum())
        if over:
            worst = int(self._lengths.argmax())
            name = self.store.id(int(self._sources[0].indices[worst]))
            raise StoreError(
                f"{over} utterances are longer than frames_per_batch={most}, up to {self._lengths[worst]} frames ({name!r}); "
                f"take a larger one, or leave them out with max_frames, or cut them with crop_frames"
            )


def plan_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What differs between the plans of two states of streams, ours against theirs; nothing where they are of one plan."""
    if ours["plan"] == theirs["plan"]:
        return ""
    differing = [
        f"{name}: {ours.get(name)} against {theirs.get(name)}"
        for name in dict.fromkeys([*ours, *theirs])
        if name not in ("epoch", "batch", "plan") and ours.get(name) != theirs.get(name)
    ]
    return "; ".join(differing) or "the utterances of the store, or which outputs are streamed"
