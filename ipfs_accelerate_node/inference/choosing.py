"""Where a model goes when nobody said, by measurement: first the device, then whether bf16 does there.

- The device is the fastest of those that take the model, by what one input took on each, in the precision that was
  asked for; where that is ``auto``, in f32.
- ``auto`` precision is bf16 on a device whose hardware computes in it, if the model's outputs there were compared with
  its own in f32 and agree, by the bounds of ``agreement``, and if it is not slower. All else is f32. The verdict is
  kept, so that comparing costs once.
- Only a thorough choice measures and compares, which takes as long as a few loads. Any other goes by what is known;
  unknown is f32.

What was chosen stays for as long as the model is loaded, also when its worker has to be started again.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from ipfs_accelerate_node.errors import (
    BadContent,
    DeviceUnavailable,
    InferenceFailed,
    ModelUnsupported,
    NodeError,
    Unavailable,
)
from ipfs_accelerate_node.inference import calibration, wire
from ipfs_accelerate_node.inference.agreement import INPUTS, Array, compared, likeness
from ipfs_accelerate_node.inference.calibration import MEASURE_S, Calibrations, Fitting, Key, Verdict, key_of
from ipfs_accelerate_node.inference.devices import Kind, kind_of
from ipfs_accelerate_node.inference.jobs import Answer
from ipfs_accelerate_node.inference.memory import available_bytes
from ipfs_accelerate_node.inference.model import Accelerator, Candidate, ModelSpec
from ipfs_accelerate_node.inference.process import WorkerGone, WorkerProcess
from ipfs_accelerate_node.inference.wanted import AUTO, EXACT, NARROW, Placed, Tell, Wanted

log = logging.getLogger(__name__)

# bf16 that takes so much longer than f32 for one input is not worth its rounding: its kernels are lacking. Both are
# timed in turns, and the fastest pass of each counts, for the machine may be busy; so the bound is no close one.
SLOWER = 2.0
ROUNDS, ROUND_S = 3, 0.4
UNKNOWN = f"whether {NARROW} does is not known yet; `load` compares, where it is not loaded already"


class Bringing(Protocol):
    """What choosing needs of ``Placing``."""

    async def devices(self, kind: Kind) -> list[Accelerator]: ...

    async def bring(self, spec: ModelSpec, wanted: Wanted, tell: Tell) -> Placed:
        """Named device and precision."""
        ...

    async def asked(self, worker: WorkerProcess, request: wire.Request, tell: Tell) -> Answer: ...


@dataclass(slots=True, eq=False)
class _Race:
    """entered: what runs the model, measured or not; refused: what does not. best: the fastest of what was measured in
    this race, still loaded. failure: of the last that did not run while it was measured; failed: of the first that did
    not when it was chosen."""

    refused: list[Candidate]
    entered: list[Candidate] = field(default_factory=list)
    best: Placed | None = None
    best_ms: float = math.inf
    failure: NodeError | None = None
    failed: NodeError | WorkerGone | None = None

    def without(self, device: str, reason: str) -> bool:
        """The device is out of it; whether another one is left."""
        mine = [one for one in self.entered if one.device == device]
        self.entered = [one for one in self.entered if one.device != device]
        self.refused.append(Candidate(device, mine[0].precision, None, reason))
        return bool(self.entered)

    def winner(self) -> str:
        """The fastest; the first where none has a figure. Raises why none runs."""
        measured = [(c.median_ms, c.device) for c in self.entered if c.median_ms is not None]
        if measured:
            return min(measured)[1]
        if not self.entered:
            raise self.failure or Unavailable("no device runs the model", code="worker_crashed", retry_after_s=5.0)
        return self.entered[0].device

    async def keep(self, placed: Placed) -> None:
        """Instead of what was kept so far."""
        await self.dismiss()
        self.best = placed

    async def dismiss(self) -> None:
        best, self.best = self.best, None
        if best is not None:
            await best.worker.stop()


class Choosing:
    """no_folder: why models cannot be converted here; empty when they can."""

    def __init__(self, bringing: Bringing, calibrations: Calibrations, *, no_folder: str) -> None:
        self._bringing = bringing
        self._calibrations = calibrations
        self._no_folder = no_folder

    async def device(
        self, spec: ModelSpec, wanted: Wanted, described: wire.Described, tell: Tell, *, thorough: bool
    ) -> Placed:
        """For ``auto`` devices. wanted: its task is one of the model's. described: what it needs."""
        found = await self._bringing.devices("torch")
        if not self._no_folder:
            found = [*found, *await self._bringing.devices("openvino")]
        precision = EXACT if wanted.precision == AUTO else wanted.precision
        judged = calibration.fitting(
            found,
            precision=precision,
            need_bytes=described.estimate_bytes.get(precision, 0),
            convertible=self._no_folder,
            free_bytes=available_bytes(),
        )
        fits = [one for one in judged if not one.refusal]
        refused = [Candidate(o.accelerator.device, precision, None, o.refusal) for o in judged if o.refusal]
        if not fits:
            reasons = "; ".join(f"{c.device}: {c.reason}" for c in refused) or "no device was found"
            raise ModelUnsupported(f"no device takes the model: {reasons}", code="model_too_large")
        race = _Race(refused)
        try:
            await self._enter(race, spec, replace(wanted, precision=precision), fits, tell, thorough=thorough)
            placed = await self._first_that_runs(race, spec, wanted, fits, tell, thorough)
        except BaseException:
            await race.dismiss()
            raise
        chosen = placed.wanted
        choice = calibration.chosen([*race.entered, *race.refused], chosen.device, chosen.precision)
        log.info(
            "load.chosen root=%s device=%s precision=%s among=%s",
            spec.root, chosen.device, chosen.precision, [(c.device, c.precision, c.median_ms) for c in choice],
        )  # fmt: skip
        # the only one that takes it needs no figure
        measured = len(fits) == 1 or all(c.median_ms is not None for c in race.entered)
        return replace(placed, choice=choice, measured=measured)

    async def precision(self, spec: ModelSpec, wanted: Wanted, tell: Tell, *, thorough: bool) -> Placed:
        """For ``auto`` precision on a named device. wanted: its task is one of the model's."""
        found = await self._bringing.devices(kind_of(wanted.device))
        here = next((one for one in found if one.device == wanted.device), None)
        if here is None:  # what it says is what loading it says
            return await self._bringing.bring(spec, replace(wanted, precision=EXACT), tell)
        race = _Race([])
        try:
            return await self._precisely(race, spec, wanted, here, tell, thorough)
        except BaseException:
            await race.dismiss()
            raise

    # -- the device

    async def _first_that_runs(
        self, race: _Race, spec: ModelSpec, wanted: Wanted, fits: Sequence[Fitting], tell: Tell, thorough: bool
    ) -> Placed:
        """On the winner; on the next one, where it does not run the model any more. Raises the first failure where none
        does; what torch refuses is the model's own fault, and tried nowhere else."""
        while True:
            here = next(fit.accelerator for fit in fits if fit.accelerator.device == race.winner())
            try:
                return await self._precisely(race, spec, replace(wanted, device=here.device), here, tell, thorough)
            except (NodeError, WorkerGone) as exc:
                race.failed = race.failed or exc
                refused = isinstance(exc, ModelUnsupported | BadContent) and kind_of(here.device) == "torch"
                if refused or not race.without(here.device, f"does not run: {exc}"[:300]):
                    raise race.failed from None
                log.warning("load.elsewhere root=%s device=%s reason=%s", spec.root, here.device, exc)

    async def _enter(
        self, race: _Race, spec: ModelSpec, wanted: Wanted, fits: Sequence[Fitting], tell: Tell, *, thorough: bool
    ) -> None:
        """Every device that could take the model; measures what has no figure yet (``thorough``), keeping the fastest
        loaded."""
        for fit in fits:
            device, precision = fit.accelerator.device, wanted.precision
            key = key_of(spec.root, wanted.task or "", fit.accelerator, precision)
            if len(fits) == 1:
                race.entered.append(Candidate(device, precision, None, "the only device that takes the model"))
            elif (figure := self._calibrations.find(key)) is not None:
                race.entered.append(Candidate(device, precision, figure.median_ms, f"measured {figure.at}"))
            elif not thorough:
                race.entered.append(Candidate(device, precision, None, "not measured yet: `load` measures"))
            else:
                await self._run(race, spec, replace(wanted, device=device), key, tell)

    async def _run(self, race: _Race, spec: ModelSpec, here: Wanted, key: Key, tell: Tell) -> None:
        """One device of the race: loaded, measured, and kept if it is the fastest so far."""
        try:
            placed = await self._bringing.bring(spec, here, tell)
            median_ms = await self._median_ms(placed, key, tell)
        except (NodeError, WorkerGone) as exc:
            race.failure = exc if isinstance(exc, NodeError) else race.failure
            race.refused.append(Candidate(here.device, here.precision, None, f"does not run: {exc}"[:300]))
            return
        race.entered.append(Candidate(here.device, here.precision, median_ms, "measured now"))
        if median_ms < race.best_ms:
            race.best, placed, race.best_ms = placed, race.best, median_ms
        if placed is not None:
            await placed.worker.stop()

    async def _median_ms(self, placed: Placed, key: Key, tell: Tell) -> float:
        """As measured before, else now. A worker that fails at it is ended."""
        if (figure := self._calibrations.find(key)) is not None:
            return figure.median_ms
        try:
            samples_ns = await self._samples_ns(placed, MEASURE_S, tell)
        except BaseException:
            await _end(placed)
            raise
        return (await asyncio.to_thread(self._calibrations.note, key, samples_ns)).median_ms

    async def _samples_ns(self, placed: Placed, seconds: float, tell: Tell) -> list[int]:
        reply, _ = await self._bringing.asked(placed.worker, wire.Calibrate(seconds), tell)
        if not isinstance(reply, wire.Timings) or not reply.samples_ns:
            raise WorkerGone(f"worker {placed.worker.pid} answered something else")
        return reply.samples_ns

    # -- the precision

    async def _precisely(
        self, race: _Race, spec: ModelSpec, wanted: Wanted, here: Accelerator, tell: Tell, thorough: bool
    ) -> Placed:
        """On one device, in the precision that is wanted or, for ``auto``, found to do. Takes what the race kept."""
        precision, why = wanted.precision, ""
        if precision == AUTO:
            precision, why = await self._found_to_do(race, spec, replace(wanted, precision=EXACT), here, tell, thorough)
        exact = replace(wanted, precision=precision)
        if race.best is None or race.best.wanted != exact or not race.best.worker.alive:
            await race.dismiss()
            race.best = await self._bringing.bring(spec, exact, tell)
        placed, race.best = race.best, None
        return replace(placed, notes=(f"{precision} by choice: {why}",) if why else ())

    async def _found_to_do(
        self, race: _Race, spec: ModelSpec, exact: Wanted, here: Accelerator, tell: Tell, thorough: bool
    ) -> tuple[str, str]:
        """(precision, why)."""
        if NARROW not in here.native:
            return EXACT, f"{here.device} has no {NARROW} arithmetic in hardware"
        key = key_of(spec.root, exact.task or "", here, NARROW)
        verdict, lack = self._calibrations.verdict(key), ""
        if verdict is None and thorough:
            try:
                verdict = await self._judged(race, spec, exact, here, tell)
            except (Unavailable, WorkerGone) as exc:  # nothing that would be so the next time, too
                lack = f"{NARROW} could not be compared with it: {exc}"[:300]
                log.warning("load.not_compared root=%s device=%s reason=%s", spec.root, here.device, exc)
        if verdict is None:
            return EXACT, lack or UNKNOWN
        figure = self._calibrations.find(key)
        reason = f"{verdict.reason} (measured {verdict.at})"
        race.entered.append(Candidate(here.device, NARROW, figure.median_ms if figure else None, reason))
        return (NARROW, reason) if verdict.does else (EXACT, f"{NARROW} does not do: {reason}")

    async def _judged(self, race: _Race, spec: ModelSpec, exact: Wanted, here: Accelerator, tell: Tell) -> Verdict:
        """Both precisions side by side; the race keeps the one that does. Raises Unavailable, WorkerGone."""
        key = key_of(spec.root, exact.task or "", here, NARROW)
        if race.best is None or race.best.wanted != exact:
            await race.keep(await self._bringing.bring(spec, exact, tell))
        assert race.best is not None
        narrow: Placed | None = None
        try:
            narrow = await self._bringing.bring(spec, replace(exact, precision=NARROW), tell)
            does, reason = await self._compared(narrow, race.best, tell)
            ratio = await self._ratio(narrow, race.best, key, tell)
            does, reason = does and ratio <= SLOWER, f"{reason}; one input takes {ratio:.2f} × as long as in {EXACT}"
        except (DeviceUnavailable, ModelUnsupported, InferenceFailed) as exc:
            does, reason = False, f"does not run: {exc}"[:300]
        except BaseException:
            if narrow is not None:
                await _end(narrow)
            raise
        if narrow is not None and does:
            await race.keep(narrow)
        elif narrow is not None:
            await narrow.worker.stop()
        return await asyncio.to_thread(self._calibrations.judge, key, does=does, reason=reason)

    async def _ratio(self, narrow: Placed, exact: Placed, key: Key, tell: Tell) -> float:
        """Of the time for one input. key: what the narrow one's figure is kept under."""
        samples_ns: dict[str, list[int]] = {NARROW: [], EXACT: []}
        for _ in range(ROUNDS):
            for placed in (exact, narrow):
                samples_ns[placed.wanted.precision] += await self._samples_ns(placed, ROUND_S, tell)
        await asyncio.to_thread(self._calibrations.note, key, samples_ns[NARROW])
        return min(samples_ns[NARROW]) / min(samples_ns[EXACT])

    async def _compared(self, narrow: Placed, exact: Placed, tell: Tell) -> tuple[bool, str]:
        """(whether they agree, the figures), over the task's own sample inputs."""
        pairs = []
        for number in range(INPUTS):
            one, other = [await self._primary(placed, number, tell) for placed in (narrow, exact)]
            pairs.append(await asyncio.to_thread(compared, one, other))
        found = likeness(pairs)
        refusal = found.refusal(NARROW)
        return not refusal, refusal or str(found)

    async def _primary(self, placed: Placed, number: int, tell: Tell) -> Array:
        reply, payload = await self._bringing.asked(placed.worker, wire.Shown(number), tell)
        if not isinstance(reply, wire.Array):
            raise WorkerGone(f"worker {placed.worker.pid} answered something else")
        return np.frombuffer(payload, dtype="<f4").reshape(reply.shape)


async def _end(placed: Placed) -> None:
    await placed.worker.kill()
    await placed.worker.stop()
