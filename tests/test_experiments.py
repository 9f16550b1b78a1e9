"""What the chapters on the papers' experiments share."""

from dataclasses import replace

import pytest

from nb_lib import papers
from nb_lib.lab.recorded import command
from nb_lib.lab.runs import Run
from nb_lib.lab.store import RunStore
from nb_lib.lab.sweeps import sweep
from nb_lib.page.experiments import title, train_or_read, varieties

RUNS = [Run(train_size=100, batch_size=50, epochs=1, seed=seed) for seed in (1, 0)]
QUIET = {"device": "cpu", "progress": False}


def test_what_is_trained_is_read_again(tmp_path):
    trained = train_or_read(RUNS, tmp_path, train=True, **QUIET)
    assert [record.run for record in trained] == RUNS
    for store in (tmp_path, RunStore(tmp_path)):
        assert train_or_read(RUNS, store, train=False, **QUIET) == trained


def test_reading_trains_nothing_and_gives_no_other_runs(tmp_path):
    sweep(RUNS, tmp_path, **QUIET)
    other = Run(train_size=100, batch_size=50, epochs=2)
    found = train_or_read([RUNS[1], other], tmp_path, train=False, **QUIET)
    assert [record.run for record in found] == [RUNS[1]]
    assert train_or_read(RUNS, None, train=False, **QUIET) == []


@pytest.fixture(scope="module")
def records():
    """Of two runs of an experiment, as if one had converged and the other had not."""
    first, second = papers.grid("ne-fig2-f1", "tiny", seeds=1)[:2]
    [made] = sweep(RUNS[:1], **QUIET)
    return [replace(made, run=first, status="converged"), replace(made, run=second, status="finished")]


def test_a_variety_is_a_table_of_its_runs_and_is_announced(records, capsys):
    (table,) = varieties(records, "ne-fig2-f1", "tiny")
    said = capsys.readouterr().out
    assert len(table) == 2
    assert said.startswith(f"{title('ne-fig2-f1', 'tiny')}\n(")
    assert "2 runs" in said


def test_of_those_that_converged_it_says_how_many(records, capsys):
    (table,) = varieties(records, "ne-fig2-f1", "tiny", converged=True)
    assert table["status"].tolist() == ["converged"]
    assert "; 1 converged" in capsys.readouterr().out


def test_where_none_converged_there_is_no_table(records, capsys):
    assert list(varieties(records[1:], "ne-fig2-f1", "tiny", converged=True)) == []
    assert "; 0 converged" in capsys.readouterr().out


def test_what_is_not_run_yet_is_said_with_the_command_that_runs_it(records, capsys):
    assert list(varieties(records, "ne-fig1-c1", "small")) == []
    assert command("ne-fig1-c1", "small") in capsys.readouterr().out
