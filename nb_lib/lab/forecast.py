"""How long trainings will take: by the pace of those measured so far, and by the epochs that runs like them took."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

from nb_lib.lab.runs import Record, Run
from nb_lib.papers import published_epochs


class Forecast:
    """Forecasts for groups of runs side by side, which get better with each group that is measured.

    Parameters
    ----------
    records : iterable of Record
        Of runs that ended earlier, anywhere: they say how many epochs runs like them take.
    where : dict, optional
        Fields of the provenance, as device and threads: records made there also say how long an epoch takes here.
    """

    def __init__(self, records: Iterable[Record] = (), where: dict[str, object] | None = None) -> None:
        self._epochs: dict[Run, list[int]] = {}
        self._pace: dict[object, float] = {}  # seconds an epoch, for one network and one minibatch an update
        self._slowest = (
            0.0  # of those measured now: at least as much time should be left for what is not known at all
        )
        for record in records:
            self._epochs.setdefault(_neutral(record.run), []).append(record.epochs)
            if where and where.items() <= record.provenance.items():
                self._note(record.run, record.wall_time / record.epochs / record.provenance["side_by_side"])

    def learn(self, run: Run, networks: int, seconds: float) -> None:
        """Note that an epoch of so many networks like this side by side took so long."""
        self._note(run, seconds / networks)
        self._slowest = max(self._slowest, seconds)

    def _note(self, run: Run, seconds: float) -> None:
        pace = seconds / _streams(run)
        self._pace[replace(run, seed=0)] = pace
        self._pace[_like(run)] = pace

    def epoch(self, group: Sequence[Run]) -> float:
        """Seconds of an epoch, by the same cell, else the same network, else the slowest measured yet; 0 at first."""
        run = group[0]
        pace = self._pace.get(replace(run, seed=0), self._pace.get(_like(run)))
        return self._slowest if pace is None else pace * len(group) * _streams(run)

    def epochs(self, group: Sequence[Run]) -> float:
        """Epochs that the group is expected to take; NaN if there is no telling.

        Where a loss ends the training, as many as like runs took, which may differ in the seed, the copy of the data
        and the precision, else as many as were published.
        """
        run = group[0]
        if run.stop_below is None:
            return run.epochs
        found = self._epochs.get(_neutral(run))
        return statistics.mean(found) if found else published_epochs(run)

    def rest(self, group: Sequence[Run], done: int = 0) -> float:
        """Seconds until the group ends, of which so many epochs are done; NaN if there is no telling."""
        known = _like(group[0]) in self._pace
        return (self.epochs(group) - done) * self.epoch(group) if known else math.nan


def _neutral(run: Run) -> Run:
    return replace(run, seed=0, dataset="digits", precision="float32")


def _streams(run: Run) -> int:
    return 2 if run.alpha > 1 else 1


def _like(run: Run) -> tuple[object, ...]:
    """What decides, besides the batch, how long a network takes for an image, and how many images there are."""
    return run.network, run.dataset, run.train_size, run.valid_size, run.precision
