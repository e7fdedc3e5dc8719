"""The output folder of a training, as it is."""

from pathlib import Path

from adapters.sources.checkpoints import adapter_folder, newest_checkpoint


def output(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def test_the_top_wins_over_checkpoints(tmp_path: Path) -> None:
    run = output(tmp_path / "run", "adapter_config.json", "checkpoint-500/adapter_config.json")
    assert adapter_folder(run) == run


def test_without_an_adapter_at_the_top_the_checkpoint_of_the_highest_step_is_taken(tmp_path: Path) -> None:
    run = output(
        tmp_path / "run",
        "trainer_state.json",
        "checkpoint-90/adapter_config.json",
        "checkpoint-1000/adapter_config.json",
        "checkpoint-200/adapter_config.json",
    )
    assert adapter_folder(run) == run / "checkpoint-1000"


def test_a_checkpoint_without_an_adapter_is_passed_over(tmp_path: Path) -> None:
    run = output(tmp_path / "run", "checkpoint-1/adapter_config.json", "checkpoint-2/optimizer.pt")
    assert adapter_folder(run) == run / "checkpoint-1"


def test_what_only_looks_like_a_checkpoint_is_none(tmp_path: Path) -> None:
    run = output(
        tmp_path / "run",
        "checkpoint-/adapter_config.json",
        "checkpoint-x/adapter_config.json",
        "xcheckpoint-1/adapter_config.json",
        "checkpoint-1-old/adapter_config.json",
        "checkpoint-５/adapter_config.json",
        "checkpoint-7",
    )
    other = output(tmp_path / "other", "adapter_config.json")
    (run / "checkpoint-9").symlink_to(other)
    assert adapter_folder(run) == run


def test_the_newest_is_by_number_and_not_by_text() -> None:
    assert newest_checkpoint(["checkpoint-9", "checkpoint-10"], lambda name: True) == "checkpoint-10"
    assert newest_checkpoint([], lambda name: True) is None
