"""Divide a record into training, validation and test rows by time, before anything is estimated from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .column_choice import match_names


@dataclass(frozen=True, kw_only=True)
class Split:
    """Rows of training, validation and test.

    With no index after idx_start_train, the rows from there on are divided by fractions: training and test take theirs
    rounded down, validation the rest (which is everything after training without a test split). With indices, a start
    that is left out is the end of the split before, and the last end that is left out is the end of the record.

    Args:
        idx_start_train: first training row; what is before it is left out.
        idx_end_train: end of the training rows, exclusive.
        idx_start_val: first validation row.
        idx_end_val: end of the validation rows, exclusive.
        have_test: whether there is a test split.
        idx_start_test: first test row.
        idx_end_test: end of the test rows, exclusive.
        fractions: of training, validation and test, where no end is given; of several runs, as nearly as whole runs
            allow.
        val_runs: of several runs, names or shell patterns of those of validation; None: those before the runs of test.
        test_runs: likewise of test; None: the last ones.
    """

    idx_start_train: int = 0
    idx_end_train: int | None = None
    idx_start_val: int | None = None
    idx_end_val: int | None = None
    have_test: bool = True
    idx_start_test: int | None = None
    idx_end_test: int | None = None
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    val_runs: list[str] | None = None
    test_runs: list[str] | None = None

    def divide(self, rows: int) -> dict[str, range]:
        """Return the rows of each split of a record; without a test split the key "test" is absent.

        Raises:
            ValueError: fractions that do not sum to 1, indices outside the record, empty or overlapping splits.
        """
        if self.val_runs is not None or self.test_runs is not None:
            raise ValueError(
                "val_runs and test_runs divide several runs, got a single record; use fractions or indices"
            )
        indices = self._indices
        if not self.have_test and (self.idx_start_test is not None or self.idx_end_test is not None):
            raise ValueError("idx_start_test and idx_end_test need have_test=True, got have_test=False")
        splits = self._by_fractions(rows) if all(index is None for index in indices) else self._by_indices(rows)
        _check_order(splits, rows)
        return {name: range(start, end) for name, (start, end) in splits.items()}

    def divide_runs(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Return the runs of each split, training first, whole runs in the order given.

        Raises:
            ValueError: too few runs, indices of rows, an unknown name, a run of two splits, or none left to train on.
        """
        if self.idx_start_train or any(index is not None for index in self._indices):
            raise ValueError("indices count the rows of one record; divide several runs by fractions or by their names")
        fewest = 3 if self.have_test else 2
        if len(names) < fewest:
            raise ValueError(
                f"several runs are divided by run: expected at least {fewest}, one a split, got {list(names)}; give "
                "more runs, or a single record, which is divided by time"
            )
        if not self.have_test and self.test_runs is not None:
            raise ValueError("test_runs needs have_test=True, got have_test=False")
        _check_fractions(self.fractions)
        val, test = (
            None if patterns is None else match_names(names, patterns, kind="run")
            for patterns in (self.val_runs, self.test_runs)
        )
        if test is None:
            test = self._last(names, val or [], self.fractions[2]) if self.have_test else []
        if val is None:
            val = self._last(names, test, self.fractions[1])
        train = [name for name in names if name not in val and name not in test]
        both = [name for name in val if name in test]
        if both or not (train and val and (test or not self.have_test)):
            raise ValueError(
                f"each run is of one split, and each split needs one: got val_runs {val} and test_runs {test} of "
                f"{list(names)}"
            )
        return {"train": train, "val": val} | ({"test": test} if self.have_test else {})

    @staticmethod
    def _last(names: Sequence[str], taken: Sequence[str], fraction: float) -> list[str]:
        """Return the last runs that are free, as nearly a fraction of all as whole runs allow, and at least one."""
        free = [name for name in names if name not in taken]
        return free[len(free) - max(1, round(fraction * len(names))) :]

    @property
    def _indices(self) -> tuple[int | None, ...]:
        return self.idx_end_train, self.idx_start_val, self.idx_end_val, self.idx_start_test, self.idx_end_test

    def _by_indices(self, rows: int) -> dict[str, tuple[int, int]]:
        if self.idx_end_train is None or (self.have_test and self.idx_end_val is None):
            raise ValueError(
                "a split by indices needs idx_end_train and, with a test split, idx_end_val; got "
                f"idx_end_train={self.idx_end_train}, idx_end_val={self.idx_end_val}; leave out all of them to split "
                "by fractions"
            )
        val_start = self.idx_end_train if self.idx_start_val is None else self.idx_start_val
        val_end = rows if self.idx_end_val is None else self.idx_end_val
        splits = {"train": (self.idx_start_train, self.idx_end_train), "val": (val_start, val_end)}
        if self.have_test:
            test_start = val_end if self.idx_start_test is None else self.idx_start_test
            splits["test"] = (test_start, rows if self.idx_end_test is None else self.idx_end_test)
        return splits

    def _by_fractions(self, rows: int) -> dict[str, tuple[int, int]]:
        first, fractions = self.idx_start_train, self.fractions
        _check_fractions(fractions)
        available = rows - first
        train_end = first + math.floor(fractions[0] * available + 1e-9)
        if not self.have_test:
            return {"train": (first, train_end), "val": (train_end, rows)}
        test_start = rows - math.floor(fractions[2] * available + 1e-9)
        return {"train": (first, train_end), "val": (train_end, test_start), "test": (test_start, rows)}


def _check_fractions(fractions: tuple[float, float, float]) -> None:
    if len(fractions) != 3 or min(fractions) < 0 or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6):
        raise ValueError(f"fractions must be three numbers (train, val, test) that sum to 1, got {fractions}")


def _check_order(splits: dict[str, tuple[int, int]], rows: int) -> None:
    earlier_end, earlier = 0, "the record"
    for name, (start, end) in splits.items():
        if not 0 <= start < end <= rows:
            raise ValueError(
                f"the {name} split must be a non-empty range within the {rows} rows of the record, got rows {start} to "
                f"{end} (exclusive); change idx_start_{name}/idx_end_{name} or fractions"
            )
        if start < earlier_end:
            raise ValueError(
                f"splits must follow one another in time, but {name} starts at row {start} and {earlier} ends at row "
                f"{earlier_end} (exclusive); set idx_start_{name} to at least {earlier_end}"
            )
        earlier_end, earlier = end, name
