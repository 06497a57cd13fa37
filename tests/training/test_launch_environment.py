import pytest

from launch_environment import print_and_exit


@pytest.mark.parametrize(
    ("rank", "local_rank", "places"),
    [
        (0, 0, {"main", "machine", "process"}),
        (1, 1, {"process"}),
        # This is the first process of the second machine.
        (8, 0, {"machine", "process"}),
    ],
)
@pytest.mark.parametrize("where", ["main", "machine", "process"])
def test_message_is_printed_in_the_selected_processes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: int,
    local_rank: int,
    places: set[str],
    where: str,
):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    with pytest.raises(SystemExit, match="3"):
        print_and_exit("train.py", "error: No.", 3, where)
    assert capsys.readouterr().err == ("train.py: error: No.\n" if where in places else "")
