from pathlib import Path

from tests.faults.soak import soak


def test_no_run_is_lost_or_doubled_while_everything_fails(tmp_path: Path) -> None:
    figures = soak(tmp_path, 60, 3, 50)
    assert figures["SUCCESS"] > 20
    assert figures["calls that Port refused"] > 0
