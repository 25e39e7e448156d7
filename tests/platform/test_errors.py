import inspect
import pickle
from pathlib import Path

import pytest

from cellmill import errors


def test_every_error_survives_a_trip_between_processes() -> None:
    kinds = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.CellmillError)]
    assert len(kinds) > 8
    for kind in kinds:
        back = pickle.loads(pickle.dumps(kind("what", where="where", fix="fix")))
        assert type(back) is kind
        assert back.as_dict() == {"kind": kind.kind, "what": "what", "where": "where", "fix": "fix"}
        assert kind.exit_code != 0


def test_message_says_what_where_and_fix() -> None:
    assert str(errors.SourceError("Gone.", where="a.h5ad", fix="Look.")) == "Gone.\n  where: a.h5ad\n  fix:   Look."


@pytest.mark.parametrize(("where", "told"), [("AnnData: X", "a.h5ad: X"), ("AnnData", "a.h5ad"), ("b.yaml", "b.yaml")])
def test_files_are_named(where: str, told: str) -> None:
    with pytest.raises(errors.CountsError) as caught, errors.located({"AnnData": Path("a.h5ad")}):
        raise errors.CountsError("Log.", where=where, fix="Mend.")
    assert (caught.value.where, caught.value.fix) == (told, "Mend.")
