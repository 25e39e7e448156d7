"""Columns by which cells were withdrawn: a later ingestion keeps them, or is refused where cells might come back."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING

from cellmill.atlas import ShardEntry
from cellmill.atlas.part_rows import count_parts
from cellmill.atlas.pruning import decide
from cellmill.atlas.standing import Standing, fulfilling, told_by
from cellmill.atlas.summary import Facts
from cellmill.atlas.withdrawals import Withdrawal, read_predicate
from cellmill.errors import ConfigError, ConflictError
from cellmill.storage import Storage

if TYPE_CHECKING:
    from cellmill.ingestion.plan import SourcePlan


def lacking(withdrawal: Withdrawal, dataset: str, kept: Container[str]) -> list[str]:
    """Return the columns that a withdrawal asks for and that the cells of a data set will not have.

    Parameters
    ----------
    withdrawal
        It asks for none of a data set that it does not speak of.
    dataset
        Name of the data set.
    kept
        Names in the atlas of the columns of obs that are kept.
    """
    if not _speaks_of(withdrawal, dataset):
        return []
    return [name for name in told_by(withdrawal) if name not in kept]


def check_columns(
    storage: Storage, plans: Iterable[SourcePlan], withdrawals: Sequence[Standing], replaced: Sequence[ShardEntry]
) -> None:
    """Refuse sources whose withdrawn cells could not be told from others.

    Parameters
    ----------
    storage
        The atlas's storage.
    plans
        The sources.
    withdrawals
        Those that hold.
    replaced
        Shards that the sources replace.

    Raises
    ------
    ConfigError
        A withdrawal took cells of the data set or file by a column that is no longer kept, or by the data set's name,
        which would be another.
    ConflictError
        Cells were withdrawn, by a column that could have been kept, after the source was planned.
    """
    for plan in plans:
        former = [entry for entry in replaced if plan.dataset in entry.datasets]
        for one in withdrawals:
            withdrawal = one.withdrawal
            if not _speaks_of(withdrawal, plan.dataset) and one.taken.had("", plan.files or plan.source_digest):
                raise ConfigError(
                    f"Cells of this file were withdrawn under the name of another data set (withdrawal "
                    f"{withdrawal.number}: {withdrawal.where}): as {plan.dataset!r} they could come back.",
                    where=plan.url,
                    fix="Give it the data set's former name (`dataset:`), or lift the withdrawal: "
                    f"cellmill atlas remove {storage.url} --lift {withdrawal.number} --reason ...",
                )
            missing = lacking(withdrawal, plan.dataset, plan.columns)
            if late := [name for name in missing if name in plan.unkept]:
                raise ConflictError(
                    f"Cells were withdrawn by {late[0]!r} meanwhile (withdrawal {withdrawal.number}).",
                    where=plan.url,
                    fix="Nothing was committed. Run again: the column will be kept.",
                )
            if missing and (
                one.taken.had(plan.dataset, plan.files or plan.source_digest)
                or any(_has_withdrawn(storage, entry, plan.dataset, withdrawal) for entry in former)
            ):
                raise ConfigError(
                    f"Cells of this data set were withdrawn by its column {missing[0]!r} (withdrawal "
                    f"{withdrawal.number}: {withdrawal.where}), which would not be there: they could come back.",
                    where=plan.url,
                    fix=f"Keep the column under that name (`obs: {{COLUMN: {missing[0]}}}`), or lift the withdrawal: "
                    f"cellmill atlas remove {storage.url} --lift {withdrawal.number} --reason ...",
                )


def untold(plan: SourcePlan, withdrawals: Iterable[Standing]) -> dict[int, str]:
    """Return the withdrawals whose predicate tells nothing of a source, each with a column that the source lacks.

    Parameters
    ----------
    plan
        The source, which `check_columns` has let pass.
    withdrawals
        Those that hold.
    """
    missing = {one.number: lacking(one.withdrawal, plan.dataset, plan.columns) for one in withdrawals}
    return {number: names[0] for number, names in missing.items() if names}


def _speaks_of(withdrawal: Withdrawal, dataset: str) -> bool:
    return decide(read_predicate(withdrawal.where), {"dataset": Facts(dataset, dataset, 0)}) is not False


def _has_withdrawn(storage: Storage, entry: ShardEntry, dataset: str, withdrawal: Withdrawal) -> bool:
    rows = fulfilling(read_predicate(withdrawal.where), storage, entry)
    return any(part.dataset == dataset for part, _ in count_parts(storage, entry, rows))
